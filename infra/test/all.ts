// All tests in one process: loading the library costs more than most of them.

import './api.test';
import './artifacts.test';
import './caps.test';
import './database.test';
import './docs.test';
import './observability.test';
import './queues.test';
import './roles.test';
import './settings.test';
