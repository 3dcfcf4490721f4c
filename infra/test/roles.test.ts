// What each role may do, and with what.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { list, Statement, synth, target, Template } from './synth';

const NETWORK = [
  'ec2:AssignPrivateIpAddresses', 'ec2:CreateNetworkInterface', 'ec2:DeleteNetworkInterface',
  'ec2:DescribeNetworkInterfaces', 'ec2:DescribeSubnets', 'ec2:UnassignPrivateIpAddresses',
];
const COMMON = [...NETWORK, 'kms:Decrypt', 'logs:CreateLogStream', 'logs:PutLogEvents', 'secretsmanager:GetSecretValue'];

/** A change here is a change of what a broken function could do. */
const MAY: Record<string, string[]> = {
  management: [
    ...COMMON, 'iam:PassRole', 'kms:GenerateDataKey', 's3:GetObject',
    'scheduler:CreateSchedule', 'scheduler:DeleteSchedule', 'scheduler:UpdateSchedule', 'sqs:SendMessage',
  ],
  executor: [
    ...COMMON, 'bedrock:InvokeModel', 'events:PutEvents', 'kms:GenerateDataKey', 's3:GetObject', 's3:PutObject',
    'ses:SendRawEmail', 'sqs:DeleteMessage', 'sqs:GetQueueAttributes', 'sqs:ReceiveMessage', 'sqs:SendMessage',
  ],
  sweeper: [
    ...COMMON, 'events:PutEvents', 'iam:PassRole', 'scheduler:CreateSchedule', 'scheduler:DeleteSchedule',
    'scheduler:GetSchedule', 'scheduler:ListSchedules', 'scheduler:UpdateSchedule', 'sqs:DeleteMessage',
    'sqs:GetQueueAttributes', 'sqs:ReceiveMessage', 'sqs:SendMessage',
  ],
  migrate: COMMON,
};

const { template } = synth();

function allowed(statements: Statement[]): Statement[] {
  return statements.filter((one) => one.Effect === 'Allow');
}

for (const [name, actions] of Object.entries(MAY)) {
  test(`${name} may do these things and no other`, () => {
    const given = allowed(template.fn(name).statements).flatMap((one) => list(one.Action));
    assert.deepEqual([...new Set(given)].sort(), [...actions].sort());
  });
}

test('each function has a role of its own, and no role has a managed policy', () => {
  const roles = Object.keys(MAY).map((name) => target(template.fn(name).properties.Role));
  assert.equal(new Set(roles).size, roles.length);
  for (const [id, role] of template.of('AWS::IAM::Role')) {
    assert.equal(role.Properties.ManagedPolicyArns, undefined, id);
  }
});

test('no role may all of a service, and * stands where AWS takes nothing narrower', () => {
  const wide = new Set(['scheduler:ListSchedules', ...NETWORK]);
  for (const [id] of template.of('AWS::IAM::Role')) {
    for (const statement of allowed(template.statements(id))) {
      for (const action of list(statement.Action)) {
        assert.ok(!action.includes('*'), `${id}: ${action}`);
        if (list(statement.Resource).includes('*')) assert.ok(wide.has(action), `${id}: ${action} on *`);
      }
    }
  }
});

test('a function\'s own code may not touch the network that Lambda places it in', () => {
  for (const name of Object.keys(MAY)) {
    const denied = template.fn(name).statements.filter((one) => one.Effect === 'Deny');
    assert.deepEqual(denied.map((one) => [[...list(one.Action)].sort(), one.Condition]), [
      [NETWORK, { Null: { 'lambda:SourceFunctionArn': 'false' } }],
    ]);
  }
});

test('the scheduler\'s role may send to the one queue and do nothing else', () => {
  const [id, role] = template.one('AWS::IAM::Role', 'QueuesSchedulerRole');
  const [queue] = template.one('AWS::SQS::Queue', 'QueuesWakeUps');
  const [group] = template.one('AWS::Scheduler::ScheduleGroup');
  const [statement, ...more] = template.statements(id);
  assert.equal(more.length, 0);
  assert.deepEqual(statement, { Action: 'sqs:SendMessage', Effect: 'Allow', Resource: { 'Fn::GetAtt': [queue, 'Arn'] } });
  const [trust] = role.Properties.AssumeRolePolicyDocument.Statement as Statement[];
  assert.equal(trust?.Principal.Service, 'scheduler.amazonaws.com');
  assert.deepEqual(trust?.Condition?.StringEquals, {
    'aws:SourceAccount': { Ref: 'AWS::AccountId' },
    'aws:SourceArn': { 'Fn::GetAtt': [group, 'Arn'] },
  });
  assert.equal(template.of('AWS::IAM::Policy').some(([, one]) => JSON.stringify(one.Properties.Roles).includes(id)), false);
});

test('the role of the schedules is passed to Scheduler alone, by the two functions that keep them', () => {
  const [role] = template.one('AWS::IAM::Role', 'QueuesSchedulerRole');
  for (const name of Object.keys(MAY)) {
    const passes = template.fn(name).statements.filter((one) => list(one.Action).includes('iam:PassRole'));
    assert.equal(passes.length, ['management', 'sweeper'].includes(name) ? 1 : 0, name);
    for (const pass of passes) {
      assert.equal(target(pass.Resource), role);
      assert.deepEqual(pass.Condition, { StringEquals: { 'iam:PassedToService': 'scheduler.amazonaws.com' } });
    }
  }
});

test('tenants\' secrets open only with the tenant\'s own context, and not in the sweeper', () => {
  const sealing = (name: string) =>
    template.fn(name).statements.filter((one) => one.Condition?.Null?.['kms:EncryptionContext:tenant_id'] === 'false');
  assert.deepEqual(sealing('management').flatMap((one) => list(one.Action)), ['kms:Decrypt', 'kms:GenerateDataKey']);
  assert.deepEqual(sealing('executor').flatMap((one) => list(one.Action)), ['kms:Decrypt']);
  assert.deepEqual(sealing('sweeper'), []);
  assert.deepEqual(sealing('migrate'), []);
  for (const name of Object.keys(MAY)) {
    for (const statement of template.fn(name).statements) {
      if (!list(statement.Action).some((action) => action.startsWith('kms:'))) continue;
      assert.ok(statement.Condition?.Null ?? statement.Condition?.StringEquals?.['kms:ViaService'], `${name}: the bare key`);
    }
  }
});

test('the admin\'s secret is the migration\'s alone', () => {
  for (const name of Object.keys(MAY)) {
    const reads = JSON.stringify(secretsOf(template, name));
    assert.equal(reads.includes('MasterUserSecret'), name === 'migrate', name);
  }
});

test('the keys of the model providers are the executor\'s alone', () => {
  const [id] = template.one('AWS::SecretsManager::Secret', 'OutletsProviderKeys');
  for (const name of Object.keys(MAY)) {
    assert.equal(secretsOf(template, name).map(target).includes(id), name === 'executor', name);
  }
});

test('mail leaves from the one address', () => {
  const send = template.fn('executor').statements.find((one) => list(one.Action).includes('ses:SendRawEmail'));
  assert.deepEqual(send?.Condition, { StringEquals: { 'ses:FromAddress': { Ref: 'MailFrom' } } });
});

function secretsOf(of: Template, name: string): unknown[] {
  return of.fn(name).statements
    .filter((one) => list(one.Action).includes('secretsmanager:GetSecretValue'))
    .flatMap((one) => list(one.Resource));
}
