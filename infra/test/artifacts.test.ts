import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import * as path from 'node:path';
import { X509Certificate } from 'node:crypto';
import { test } from 'node:test';
import { App, Stack, Validations } from 'aws-cdk-lib';
import * as sns from 'aws-cdk-lib/aws-sns';
import { AwsSolutionsChecks } from 'cdk-nag';
import { placeholders, scratch, synth } from './synth';

// Compiled, this file lies in infra/build/test.
const INFRA = path.resolve(__dirname, '../..');

test('the list of files holds the template and one zip a function, and the template asks for these', () => {
  const zips = placeholders();
  const { folder, template, assets } = synth({ database: 'external' }, zips);
  const keys = new Map<string, string>(Object.values(assets).map((one: any) => {
    const [destination] = Object.values(one.destinations) as any[];
    return [destination.objectKey as string, path.join(folder, one.source.path)];
  }));
  assert.equal(keys.size, 5);
  for (const name of ['management', 'executor', 'sweeper', 'migrate']) {
    const file = keys.get(template.fn(name).properties.Code.S3Key);
    assert.ok(file, name);
    assert.equal(readFileSync(file, 'utf8'), readFileSync(path.join(zips, name, 'bootstrap.zip'), 'utf8'), name);
  }
  const [templateKey] = [...keys].find(([, file]) => file.endsWith('Carillon.template.json')) ?? [];
  assert.match(templateKey ?? '', /^[0-9a-f]{64}\.json$/);
});

test('the bucket is a parameter, and cdk\'s own without one', () => {
  const { template } = synth({ database: 'external' });
  assert.deepEqual(template.fn('executor').properties.Code.S3Bucket, {
    'Fn::If': ['ArtifactBucketGiven', { Ref: 'ArtifactBucket' }, { 'Fn::Sub': 'cdk-hnb659fds-assets-${AWS::AccountId}-${AWS::Region}' }],
  });
  assert.equal(template.json.Parameters.ArtifactBucket.Default, 'bootstrap');
});

test('the template asks nothing of the account that applies it', () => {
  for (const database of ['postgres', 'aurora', 'external']) {
    const { template } = synth({ database });
    assert.equal(template.json.Parameters.BootstrapVersion, undefined);
    assert.deepEqual(Object.keys(template.json.Rules), ['OidcIsWhole']);
    const required = Object.entries(template.json.Parameters as Record<string, any>).filter(([, one]) => one.Default === undefined);
    const own = database === 'external' ? ['DatabaseHost', 'DatabaseAdminSecretArn'] : [];
    assert.deepEqual(required.map(([name]) => name).sort(), ['MailFrom', ...own].sort());
  }
});

test('zips that are not there are asked for by the command that makes them', () => {
  const empty = scratch('empty');
  assert.throws(() => synth({}, empty), /run \.\/dev package first/);
});

test('a finding of cdk-nag fails the synth', () => {
  const app = new App({ outdir: scratch('nag') });
  new sns.Topic(new Stack(app, 'Careless'), 'Topic');
  Validations.of(app).addPlugins(new AwsSolutionsChecks(app));
  assert.throws(() => app.synth(), /Validation failed/);
});

test('every finding that is let pass has a reason', () => {
  const report = path.join(INFRA, 'lib');
  const text = execFileSync('grep', ['-rn', '-A2', "id: ['`]", report], { encoding: 'utf8' });
  const ids = text.match(/id: ['`](AwsSolutions|CloudFormation)/g) ?? [];
  const reasons = text.match(/reason: ["'].{25,}["']/g) ?? [];
  assert.ok(ids.length > 10);
  assert.equal(reasons.length, ids.length);
});

test('the certificates that the zips carry are whole, and none ends before 2060', () => {
  const pem = readFileSync(path.join(INFRA, 'certs/rds-ca.pem'), 'utf8');
  const certificates = pem.match(/-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g) ?? [];
  assert.equal(certificates.length, 27);
  for (const one of certificates.map((text) => new X509Certificate(text))) {
    assert.match(one.subject, /CN=Amazon RDS \S+ Root CA RSA2048 G1/);
    assert.ok(one.ca && one.verify(one.publicKey), one.subject);
    assert.ok(new Date(one.validTo).getUTCFullYear() >= 2060, one.subject);
  }
});
