import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import * as path from 'node:path';
import { test } from 'node:test';
import { Resource, synth, target } from './synth';

const { template } = synth();
// Compiled, this file lies in infra/build/test.
const ROOT = path.resolve(__dirname, '../../..');

function alarm(id: string): Resource['Properties'] {
  return template.one('AWS::CloudWatch::Alarm', `ObservabilityAlarm${id}`)[1].Properties;
}

/** Each filter of a metric: what it adds, and to which lines. */
function filters(metric: string): [string, string][] {
  return template.of('AWS::Logs::MetricFilter')
    .filter(([, one]) => one.Properties.MetricTransformations[0].MetricName === metric)
    .map(([, one]): [string, string] => [one.Properties.MetricTransformations[0].MetricValue, one.Properties.FilterPattern])
    .sort();
}

function only(metric: string): string {
  const [first, ...more] = filters(metric);
  assert.ok(first && more.length === 0, metric);
  return first[1];
}

test('a failure rate over 10% in 5 minutes rings', () => {
  const { MetricName, Statistic, Period, Threshold, ComparisonOperator, EvaluationPeriods } = alarm('FailureRate');
  assert.deepEqual(
    [MetricName, Statistic, Period, Threshold, ComparisonOperator, EvaluationPeriods],
    ['FailurePercent', 'Average', 300, 10, 'GreaterThanThreshold', 1],
  );
  // The average over runs is the rate: 100 for one that failed or timed out, 0 for one that succeeded.
  assert.deepEqual(filters('FailurePercent'), [
    ['0', only('RunsSucceeded')], ['100', only('RunsFailed')], ['100', only('RunsTimedOut')],
  ].sort());
});

test('a run is counted by the line that it ends with', () => {
  assert.equal(only('RunsSucceeded'), '{ (($.message = "run ended") || ($.message = "model answered")) && ($.[\'run.status\'] = "succeeded") }');
  assert.equal(only('RunsTimedOut'), '{ ($.message = "try failed") && ($.[\'run.ended\'] IS TRUE) && ($.[\'error.code\'] = "provider_timeout") }');
  assert.equal(only('RunsFailed'), '{ (($.message = "run ended") && ($.[\'run.status\'] = "failed")) || ' +
    '(($.message = "try failed") && ($.[\'run.ended\'] IS TRUE) && ($.[\'error.code\'] != "provider_timeout")) }');
});

test('drift is what was repaired and what could not be', () => {
  assert.deepEqual(filters('Drift'), ['$.drifted', '$.failed', '$.orphans'].map((field) => [field, '{ $.message = "entries repaired" }']));
});

test('over 5 timeouts in 10 minutes ring', () => {
  const { MetricName, Statistic, Period, Threshold, ComparisonOperator } = alarm('Timeouts');
  assert.deepEqual([MetricName, Statistic, Period, Threshold, ComparisonOperator], ['RunsTimedOut', 'Sum', 600, 5, 'GreaterThanThreshold']);
});

test('a queue that grows old, dead letters, drift and a silent sweeper ring', () => {
  assert.deepEqual([alarm('QueueAge').MetricName, alarm('QueueAge').Threshold], ['ApproximateAgeOfOldestMessage', 300]);
  for (const [id, prefix] of [['DeadLettersNotEmpty', 'QueuesDeadLetters'], ['UndeliveredNotEmpty', 'QueuesUndelivered']] as const) {
    const { MetricName, Threshold, ComparisonOperator, Dimensions } = alarm(id);
    assert.deepEqual([MetricName, Threshold, ComparisonOperator], ['ApproximateNumberOfMessagesVisible', 0, 'GreaterThanThreshold']);
    assert.equal(Dimensions[0].Value['Fn::GetAtt'][0], template.one('AWS::SQS::Queue', prefix)[0]);
  }
  assert.deepEqual([alarm('DeadLetterRecorded').MetricName, alarm('DeadLetterRecorded').Threshold], ['DeadLetters', 0]);
  assert.equal(alarm('Drift').MetricName, 'Drift');
  const silent = alarm('SweeperSilent');
  assert.deepEqual([silent.MetricName, silent.ComparisonOperator, silent.Threshold, silent.TreatMissingData], ['Invocations', 'LessThanThreshold', 1, 'breaching']);
});

test('every alarm tells the topic, and works without metric math', () => {
  const [topic] = template.one('AWS::SNS::Topic');
  const alarms = template.of('AWS::CloudWatch::Alarm');
  assert.equal(alarms.length, 11);
  for (const [id, one] of alarms) {
    assert.deepEqual((one.Properties.AlarmActions as unknown[]).map(target), [topic], id);
    assert.equal(one.Properties.Metrics, undefined, id);
    assert.ok(one.Properties.AlarmDescription.length > 20, id);
  }
});

test('somebody is mailed where an address is given', () => {
  const [, mailed] = template.one('AWS::SNS::Subscription');
  assert.deepEqual([mailed.Condition, mailed.Properties.Protocol], ['AlarmEmailGiven', 'email']);
});

test('every log has an end', () => {
  for (const days of [30, 7]) {
    const groups = synth({ logDays: days, database: 'external' }).template.of('AWS::Logs::LogGroup');
    assert.ok(groups.length >= 6);
    for (const [id, group] of groups) assert.equal(group.Properties.RetentionInDays, days, id);
  }
});

test('two stacks of a Region share no metric, log or name', () => {
  const named: [string, string][] = [
    ['AWS::ApiGatewayV2::Api', 'Name'], ['AWS::CloudWatch::Alarm', 'AlarmName'], ['AWS::CloudWatch::Dashboard', 'DashboardName'],
    ['AWS::Events::EventBus', 'Name'], ['AWS::IAM::Role', 'RoleName'], ['AWS::Lambda::Function', 'FunctionName'],
    ['AWS::Logs::LogGroup', 'LogGroupName'], ['AWS::RDS::DBInstance', 'DBInstanceIdentifier'], ['AWS::S3::Bucket', 'BucketName'],
    ['AWS::SQS::Queue', 'QueueName'], ['AWS::Scheduler::ScheduleGroup', 'Name'], ['AWS::SecretsManager::Secret', 'Name'],
  ];
  for (const [type, property] of named) {
    for (const [id, one] of template.of(type)) {
      const name = JSON.stringify(one.Properties[property] ?? 'AWS::StackName');
      assert.ok(name.includes('AWS::StackName'), `${id} is always called ${name}`);
    }
  }
  for (const [id, filter] of template.of('AWS::Logs::MetricFilter')) {
    assert.ok(JSON.stringify(filter.Properties.MetricTransformations[0].MetricNamespace).includes('AWS::StackName'), id);
  }
});

test('the executor writes the lines that its alarms and graphs count', () => {
  const source = sources(path.join(ROOT, 'functions/executor/src'));
  assert.match(source, /run\.status = %status, "run ended"/);
  assert.match(source, /run\.status = %status,[^"]*run\.latency_ms = [^"]*"model answered"/);
  assert.match(source, /error\.code = failure\.code, run\.ended = failure\.then\.ends\(\),\s*"try failed"/);
  assert.match(source, /Self::Timeout => "provider_timeout"/);
});

function sources(folder: string): string {
  const files = readdirSync(folder, { recursive: true, encoding: 'utf8' }).filter((name) => name.endsWith('.rs'));
  return files.map((name) => readFileSync(path.join(folder, name), 'utf8')).join('\n');
}
