// Carillon on AWS, whole: what there is and how it is joined. The constructs say how each part is made.

import { CfnOutput, RemovalPolicy, Stack, StackProps } from 'aws-cdk-lib';
import * as kms from 'aws-cdk-lib/aws-kms';
import { Construct } from 'constructs';
import { Api, Management } from './api';
import { Synthesizer } from './artifacts';
import { arnOf, Database } from './database';
import { Executor, Queues } from './executor';
import { Base, CarillonFunction } from './function';
import { Observability } from './observability';
import { Outlets } from './outlets';
import { Parameters } from './parameters';
import { Settings } from './settings';
import { Sweeper } from './sweeper';

export class CarillonStack extends Stack {
  constructor(scope: Construct, id: string, settings: Settings, props: StackProps = {}) {
    const synthesizer = new Synthesizer();
    super(scope, id, {
      description: 'Carillon: AI prompts on a schedule, for the tenants of a SaaS product',
      terminationProtection: !settings.disposable,
      ...props,
      synthesizer,
    });
    synthesizer.declareBucket(this);
    const parameters = new Parameters(this);
    const key = this.makeKey(settings);
    const database = new Database(this, 'Database', settings, key);
    const base: Base = { settings, parameters, network: database.network };
    const queues = new Queues(this, 'Queues');
    const outlets = new Outlets(this, 'Outlets', settings, parameters, key, queues.deadLetters);
    const management = new Management(this, 'Management', base, database, queues, outlets, key);
    const executor = new Executor(this, 'Executor', base, database, queues, outlets, key);
    const sweeper = new Sweeper(this, 'Sweeper', base, database, queues, outlets);
    const migrate = database.migrateBefore(base, [management, executor, sweeper]);
    const api = new Api(this, 'Api', settings, parameters, management);
    new Observability(this, 'Observability', {
      settings, parameters, key, database, queues, api, management, executor, sweeper,
    });
    this.tell({ api, queues, outlets, database, functions: { management, executor, sweeper, migrate } });
  }

  /** One key: it seals tenants' secrets, and stands behind what RDS, S3 and Secrets Manager store. */
  private makeKey(settings: Settings): kms.Key {
    return new kms.Key(this, 'Key', {
      description: "Carillon: tenants' secrets, the database, outputs",
      enableKeyRotation: true,
      removalPolicy: settings.disposable ? RemovalPolicy.DESTROY : RemovalPolicy.RETAIN,
    });
  }

  private tell(of: {
    api: Api;
    queues: Queues;
    outlets: Outlets;
    database: Database;
    functions: Record<string, CarillonFunction>;
  }): void {
    const say = (id: string, value: string, description: string) =>
      new CfnOutput(this, id, { value, description });
    say('ApiUrl', of.api.url, 'The API: API keys, and OIDC tokens where an issuer is given');
    say('TokenApiUrl', of.api.tokenUrl, 'The same API behind the check of OIDC tokens').condition = of.api.hasTokens;
    say('ProviderKeysSecretArn', arnOf(of.outlets.providerKeys), 'To be filled with the keys of model providers');
    say('DatabaseSecretArn', arnOf(of.database.appSecret), 'The database role of tenants\' statements');
    say('SystemDatabaseSecretArn', arnOf(of.database.systemSecret), 'The database role of the system functions');
    say('BucketName', of.outlets.bucket.bucketName, 'Outputs');
    say('EventBusName', of.outlets.bus.eventBusName, 'What happens, as events');
    say('MailEventsQueueUrl', of.outlets.mailEvents.queueUrl, 'Bounces and complaints on their way in');
    say('QueueUrl', of.queues.wakeUps.queueUrl, 'Wake-ups');
    say('DeadLetterQueueUrl', of.queues.deadLetters.queueUrl, 'Wake-ups that were given up');
    say('ScheduleGroup', of.queues.group.ref, 'The entries of the prompts');
    for (const [name, fn] of Object.entries(of.functions)) {
      say(`${name[0]?.toUpperCase()}${name.slice(1)}Function`, fn.lambda.functionName, `The function ${name}`);
    }
  }
}
