import assert from 'node:assert/strict';
import { test } from 'node:test';
import { list, Statement, synth, target } from './synth';

const { template } = synth();
const wakeUps = template.one('AWS::SQS::Queue', 'QueuesWakeUps');
const dead = template.one('AWS::SQS::Queue', 'QueuesDeadLetters');
const undelivered = template.one('AWS::SQS::Queue', 'QueuesUndelivered');

function policyOf(queue: string): Statement[] {
  const found = template.of('AWS::SQS::QueuePolicy').filter(([, one]) => (one.Properties.Queues as unknown[]).map(target).includes(queue));
  return found.flatMap(([, one]) => one.Properties.PolicyDocument.Statement as Statement[]);
}

test('a wake-up that fails five times goes to the dead letters, which are kept for 14 days', () => {
  assert.deepEqual(wakeUps[1].Properties.RedrivePolicy, {
    deadLetterTargetArn: { 'Fn::GetAtt': [dead[0], 'Arn'] },
    maxReceiveCount: 5,
  });
  for (const [id, queue] of [dead, undelivered]) assert.equal(queue.Properties.MessageRetentionPeriod, 1_209_600, id);
});

test('no wake-up comes back while an executor still works on it', () => {
  const [, mapping] = template.one('AWS::Lambda::EventSourceMapping');
  const heldAtMost = mapping.Properties.MaximumBatchingWindowInSeconds + template.fn('executor').properties.Timeout;
  assert.ok(wakeUps[1].Properties.VisibilityTimeout > heldAtMost);
});

test('the executor has time for the longest prompt, 840 s', () => {
  assert.ok(template.fn('executor').properties.Timeout >= 840 + 60);
});

test('more wake-ups than slots in the window that SQS asks for, and those that fail come back one by one', () => {
  const [, mapping] = template.one('AWS::Lambda::EventSourceMapping');
  assert.equal(target(mapping.Properties.EventSourceArn), wakeUps[0]);
  assert.deepEqual(mapping.Properties.FunctionResponseTypes, ['ReportBatchItemFailures']);
  assert.equal(mapping.Properties.BatchSize, 100);
  assert.equal(mapping.Properties.MaximumBatchingWindowInSeconds, 1);
  assert.equal(template.fn('executor').properties.Environment.Variables.CARILLON_EXECUTOR_SLOTS, '10');
  assert.equal(mapping.Properties.ScalingConfig.MaximumConcurrency, 10);
});

test('a batch that one receive fills waits for nothing', () => {
  const [, mapping] = synth({ executorBatch: 10, database: 'external' }).template.one('AWS::Lambda::EventSourceMapping');
  assert.deepEqual([mapping.Properties.BatchSize, mapping.Properties.MaximumBatchingWindowInSeconds], [10, undefined]);
});

test('every queue is a standard one, encrypted, and closed to plain HTTP', () => {
  const queues = template.of('AWS::SQS::Queue');
  assert.equal(queues.length, 4);
  for (const [id, queue] of queues) {
    assert.equal(queue.Properties.FifoQueue, undefined, id);
    assert.equal(queue.Properties.SqsManagedSseEnabled, true, id);
    const deny = policyOf(id).find((one) => one.Effect === 'Deny');
    assert.deepEqual(deny?.Condition, { Bool: { 'aws:SecureTransport': 'false' } }, id);
    assert.equal(deny?.Action, 'sqs:*', id);
  }
});

test('the scheduler\'s dead-letter queue lets its role in, and nobody else from outside', () => {
  const [role] = template.one('AWS::IAM::Role', 'QueuesSchedulerRole');
  const allow = policyOf(undelivered[0]).filter((one) => one.Effect === 'Allow');
  assert.deepEqual(allow.map((one) => [list(one.Action), target(one.Principal.AWS)]), [[['sqs:SendMessage'], role]]);
  for (const id of [wakeUps[0], dead[0]]) {
    assert.deepEqual(policyOf(id).filter((one) => one.Effect === 'Allow'), [], id);
  }
});

test('bounces and complaints of this stack\'s mail, and of no other, reach the sweeper', () => {
  const [queue] = template.one('AWS::SQS::Queue', 'OutletsMailEvents');
  const [set] = template.one('AWS::SES::ConfigurationSet');
  const [ruleId, rule] = template.one('AWS::Events::Rule');
  assert.deepEqual(rule.Properties.EventPattern, {
    source: ['aws.ses'],
    detail: { eventType: ['Bounce', 'Complaint'], mail: { tags: { 'ses:configuration-set': [{ Ref: set }] } } },
  });
  assert.deepEqual((rule.Properties.Targets as any[]).map((one) => target(one.Arn)), [queue]);
  const allow = policyOf(queue).filter((one) => one.Effect === 'Allow');
  assert.deepEqual(allow.map((one) => [one.Principal.Service, one.Condition]), [
    ['events.amazonaws.com', { ArnEquals: { 'aws:SourceArn': { 'Fn::GetAtt': [ruleId, 'Arn'] } } }],
  ]);
  const [, destination] = template.one('AWS::SES::ConfigurationSetEventDestination');
  assert.deepEqual(destination.Properties.EventDestination.MatchingEventTypes, ['bounce', 'complaint']);
  const variables = template.fn('sweeper').properties.Environment.Variables;
  assert.equal(target(variables.CARILLON_MAIL_EVENTS_QUEUE_URL), queue);
});
