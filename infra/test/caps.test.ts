// What the template says of connections, added up from the template alone.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { CONNECTIONS_RESERVED } from '../lib/settings';
import { synth, target, Template } from './synth';

/** Connections that all functions can hold together, or a fault where one of them has no bound. */
function connectionsAtMost(template: Template): number {
  return ['management', 'executor', 'sweeper', 'migrate'].reduce(
    (sum, name) => sum + atOnce(template, name) * connections(template, name), 0,
  );
}

function atOnce(template: Template, name: string): number {
  const { id, properties } = template.fn(name);
  const mapping = template.of('AWS::Lambda::EventSourceMapping').find(([, one]) => target(one.Properties.FunctionName) === id);
  const bound = mapping ? mapping[1].Properties.ScalingConfig?.MaximumConcurrency : properties.ReservedConcurrentExecutions;
  if (typeof bound !== 'number') throw new Error(`nothing bounds how often ${name} runs at once`);
  return bound;
}

function connections(template: Template, name: string): number {
  const variables = template.fn(name).properties.Environment.Variables;
  if (name === 'migrate') return 1;
  return Number(variables.CARILLON_DATABASE_CONNECTIONS_MAX) + Number(variables.CARILLON_SYSTEM_DATABASE_CONNECTIONS_MAX);
}

function limit(template: Template): number {
  const groups = [...template.of('AWS::RDS::DBParameterGroup'), ...template.of('AWS::RDS::DBClusterParameterGroup')];
  const values = groups.map(([, one]) => Number(one.Properties.Parameters.max_connections)).filter((value) => value > 0);
  assert.equal(values.length, 1);
  return values[0] as number;
}

const STACKS = [
  {},
  { databaseSize: 'micro', executorConcurrency: 5 },
  { databaseSize: 'large', executorConcurrency: 100 },
  { database: 'aurora' },
];

for (const context of STACKS) {
  test(`the functions fit into the database: ${JSON.stringify(context)}`, () => {
    const { template } = synth(context);
    const most = connectionsAtMost(template);
    assert.ok(most > 50, `only ${most} were counted`);
    assert.ok(most + CONNECTIONS_RESERVED <= limit(template), `${most} of ${limit(template)}`);
  });
}

test('a database of one\'s own is held to what its owner allows', () => {
  // 10 executors of 5 connections, 10 of management of 3, a sweeper of 5 and a migration of 1.
  const { template } = synth({ database: 'external', databaseConnections: 96 });
  assert.equal(connectionsAtMost(template), 86);
  assert.throws(() => synth({ database: 'external', databaseConnections: 95 }), /takes 95/);
});

test('the queue alone invokes the executor, so that its bound holds', () => {
  const { template } = synth();
  const { id } = template.fn('executor');
  const others = [
    ...template.of('AWS::Lambda::Permission').map(([, one]) => target(one.Properties.FunctionName)),
    ...template.of('AWS::Scheduler::Schedule').map(([, one]) => target(one.Properties.Target.Arn)),
    ...template.of('AWS::Lambda::Url').map(([, one]) => target(one.Properties.TargetFunctionArn)),
  ];
  assert.ok(others.length > 0);
  assert.ok(!others.includes(id));
});

test('one sweep at a time, every minute, and none waits for its turn', () => {
  const { template } = synth();
  const { id, properties } = template.fn('sweeper');
  assert.equal(properties.ReservedConcurrentExecutions, 1);
  const [, clock] = template.one('AWS::Scheduler::Schedule');
  assert.equal(clock.Properties.ScheduleExpression, 'rate(1 minute)');
  assert.equal(target(clock.Properties.Target.Arn), id);
  assert.equal(clock.Properties.GroupName, undefined, 'the prompts\' group holds prompts alone');
  assert.ok(properties.Timeout < 60);
  const [, queueing] = template.one('AWS::Lambda::EventInvokeConfig');
  assert.deepEqual([queueing.Properties.MaximumRetryAttempts, queueing.Properties.MaximumEventAgeInSeconds], [0, 60]);
});
