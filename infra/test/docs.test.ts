// The tables of docs/deploy.md are what the functions' authors and the operators go by.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import * as path from 'node:path';
import { test } from 'node:test';
import { FUNCTIONS } from '../lib/function';
import { synth } from './synth';

// Compiled, this file lies in infra/build/test.
const ROOT = path.resolve(__dirname, '../../..');
const PAGE = readFileSync(path.join(ROOT, 'docs/deploy.md'), 'utf8');

/** The rows of the table under these heads, each as its cells. */
function table(heads: string): string[][] {
  const [, after] = PAGE.split(`\n| ${heads} |\n`);
  assert.ok(after, `there is no table | ${heads} |`);
  const rows = after.split('\n').slice(1);
  const end = rows.findIndex((row) => !row.startsWith('|'));
  return rows.slice(0, end).map((row) => row.split('|').slice(1, -1).map((cell) => cell.trim().replaceAll('`', '')));
}

test('the page lists each variable of each function, and no other', () => {
  const { template } = synth();
  const given = new Map<string, string[]>();
  for (const name of FUNCTIONS) {
    for (const variable of Object.keys(template.fn(name).properties.Environment.Variables)) {
      given.set(variable, [...(given.get(variable) ?? []), name]);
    }
  }
  const listed = table('variable | functions | meaning').map(([variable, functions]) => [variable, functions]);
  const expected = [...given].map(([variable, functions]) => [variable, functions.join(', ')]);
  assert.deepEqual(listed.sort(), expected.sort());
});

test('the page lists each parameter with its default', () => {
  const parameters = { ...synth({ database: 'external' }).template.json.Parameters, ...synth().template.json.Parameters };
  const expected = Object.entries(parameters as Record<string, { Default?: string }>).map(([name, { Default }]) => [
    name, Default === undefined ? '' : Default || 'none',
  ]);
  assert.deepEqual(table('parameter | default |').map(([name, value]) => [name, value]).sort(), expected.sort());
});

test('the page lists each setting that the app reads', () => {
  const source = ['infra/lib/settings.ts', 'infra/bin/carillon.ts'].map((name) => readFileSync(path.join(ROOT, name), 'utf8')).join();
  const read = [...source.matchAll(/(?:context\.(?:oneOf|flag|number|text)|tryGetContext)\('(\w+)'/g)].map(([, name]) => name);
  assert.ok(read.length > 10);
  assert.deepEqual(table('setting | default |').map(([name]) => name).sort(), [...new Set(read)].sort());
});

test('the page lists each alarm', () => {
  const alarms = synth().template.of('AWS::CloudWatch::Alarm').map(([id]) => id.replace(/^ObservabilityAlarm/, '').replace(/[0-9A-F]{8}$/, ''));
  assert.deepEqual(table('alarm | when').map(([name]) => name).sort(), alarms.sort());
});

test('what the page says of connections is what the stack adds up', () => {
  assert.match(PAGE, /`executorConcurrency × 5 \+ managementConcurrency × 3 \+ 5 \+ 1`, and ten kept free/);
  const sum = (executorConcurrency: number, managementConcurrency: number) => executorConcurrency * 5 + managementConcurrency * 3 + 5 + 1 + 10;
  assert.ok(sum(5, 10) <= 80, 'a micro with executorConcurrency=5');
});
