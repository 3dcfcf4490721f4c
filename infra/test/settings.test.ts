import assert from 'node:assert/strict';
import { test } from 'node:test';
import { App } from 'aws-cdk-lib';
import { connectionsAtMost, read, SIZES } from '../lib/settings';

const settings = (context: Record<string, unknown>) => read(new App({ context }).node, 'zips');

test('without a word the stack is made for production', () => {
  const { database, multiAz, disposable, executorBatch, executorConcurrency } = settings({});
  assert.deepEqual(
    { database, multiAz, disposable, executorBatch, executorConcurrency },
    { database: 'postgres', multiAz: true, disposable: false, executorBatch: 100, executorConcurrency: 10 },
  );
});

test('every fault is told at once, with what would be right', () => {
  const wrong = { database: 'mysql', multiAz: 'maybe', natGateways: '3', executorConcurrency: '1', logDays: '1.5' };
  assert.throws(() => settings(wrong), (error: Error) => {
    assert.match(error.message, /database must be one of postgres, aurora, external/);
    assert.match(error.message, /multiAz must be one of true, false/);
    assert.match(error.message, /natGateways must be a whole number from 1 to 2/);
    assert.match(error.message, /executorConcurrency must be a whole number from 2 to 1000/);
    assert.match(error.message, /logDays must be a whole number/);
    return true;
  });
});

test('values come as text from the command line and as they are from cdk.json', () => {
  assert.equal(settings({ natGateways: '2' }).natGateways, 2);
  assert.equal(settings({ natGateways: 2 }).natGateways, 2);
  assert.equal(settings({ multiAz: 'false' }).multiAz, false);
  assert.equal(settings({ multiAz: false }).multiAz, false);
});

test('more functions than the database has connections are refused, with the figures', () => {
  const refused = { databaseSize: 'small', executorConcurrency: 24 };
  assert.throws(() => settings(refused), /may open 156 connections and 10 are kept free, but the database takes 160/);
  assert.throws(() => settings({ databaseSize: 'micro' }), /takes 80; lower executorConcurrency \(10\) or managementConcurrency \(10\)/);
  assert.equal(settings({ databaseSize: 'micro', executorConcurrency: 5, managementConcurrency: 10 }).connectionsMax, 80);
});

test('the caps are exact: one executor more than fits is refused', () => {
  for (const databaseSize of Object.keys(SIZES)) {
    const of = (executorConcurrency: number) => settings({ databaseSize, executorConcurrency, managementConcurrency: 5 });
    const { connectionsMax } = of(2);
    // 5 connections an executor, 15 of management, 5 of the sweeper, 1 of the migration, 10 kept free.
    const most = Math.floor((connectionsMax - 15 - 5 - 1 - 10) / 5);
    assert.ok(connectionsAtMost(of(most)) + 10 <= connectionsMax);
    assert.throws(() => of(most + 1), /connections/, `${databaseSize}: ${most}`);
  }
});

test('a database of one\'s own has the limit that its owner names', () => {
  assert.equal(settings({ database: 'external' }).connectionsMax, 100);
  assert.equal(settings({ database: 'external', databaseConnections: 500, executorConcurrency: 50 }).connectionsMax, 500);
  assert.throws(() => settings({ database: 'external', executorConcurrency: 50 }), /takes 100/);
  assert.throws(() => settings({ databaseConnections: 500 }), /databaseConnections is for database=external/);
});
