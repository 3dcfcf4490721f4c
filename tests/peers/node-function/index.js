// What a function in Node does before its first answer: it builds its clients, connects to its
// database, and asks the runtime API for an event. The executor does the same in Rust; the benchmark
// `cold_start` starts both.
import http from 'node:http';
import { KMSClient } from '@aws-sdk/client-kms';
import { S3Client } from '@aws-sdk/client-s3';
import { SESClient } from '@aws-sdk/client-ses';
import { SQSClient } from '@aws-sdk/client-sqs';
import pg from 'pg';

const clients = [new KMSClient({}), new S3Client({}), new SESClient({}), new SQSClient({})];
const database = new pg.Client({ connectionString: process.env.CARILLON_DATABASE_URL });
work();

async function work() {
  await database.connect();
  for (;;) {
    const { headers, body } = await call('GET', 'next');
    const answer = await handle(JSON.parse(body));
    await call('POST', `${headers['lambda-runtime-aws-request-id']}/response`, JSON.stringify(answer));
  }
}

async function handle(event) {
  await database.query('SELECT 1');
  return { batchItemFailures: [], clients: clients.length, records: event.Records.length };
}

function call(method, path, body) {
  const [host, port] = process.env.AWS_LAMBDA_RUNTIME_API.split(':');
  const options = { host, port, method, path: `/2018-06-01/runtime/invocation/${path}` };
  return new Promise((resolve, reject) => {
    const request = http.request(options, (response) => {
      let text = '';
      response.on('data', (chunk) => (text += chunk));
      response.on('end', () => resolve({ headers: response.headers, body: text }));
    });
    request.on('error', reject);
    request.end(body);
  });
}
