import assert from 'node:assert/strict';
import { test } from 'node:test';
import { list, placeholders, Resource, synth, target, Template } from './synth';

const postgres = synth().template;
const aurora = synth({ database: 'aurora' }).template;
const external = synth({ database: 'external' }).template;
const FUNCTIONS = ['management', 'executor', 'sweeper', 'migrate'];

test('the database is encrypted, private, in two zones, kept for 14 days, and not deleted by mistake', () => {
  const [, instance] = postgres.one('AWS::RDS::DBInstance');
  const { Engine, EngineVersion, StorageEncrypted, PubliclyAccessible, MultiAZ, BackupRetentionPeriod, DeletionProtection } = instance.Properties;
  assert.deepEqual(
    { Engine, EngineVersion, StorageEncrypted, PubliclyAccessible, MultiAZ, BackupRetentionPeriod, DeletionProtection },
    {
      Engine: 'postgres', EngineVersion: '17', StorageEncrypted: true, PubliclyAccessible: false, MultiAZ: true,
      BackupRetentionPeriod: 14, DeletionProtection: true,
    },
  );
  assert.deepEqual([instance.DeletionPolicy, instance.UpdateReplacePolicy], ['Snapshot', 'Snapshot']);
});

test('Aurora is no less careful', () => {
  const [, cluster] = aurora.one('AWS::RDS::DBCluster');
  const { StorageEncrypted, BackupRetentionPeriod, DeletionProtection, ServerlessV2ScalingConfiguration } = cluster.Properties;
  assert.deepEqual([StorageEncrypted, BackupRetentionPeriod, DeletionProtection], [true, 14, true]);
  assert.equal(ServerlessV2ScalingConfiguration.MinCapacity, 0.5);
  assert.equal(cluster.DeletionPolicy, 'Snapshot');
  const instances = aurora.of('AWS::RDS::DBInstance');
  assert.equal(instances.length, 2, 'a writer and its standby');
  for (const [, instance] of instances) assert.equal(instance.Properties.PubliclyAccessible, false);
});

test('key and outputs outlive the stack, but for one that was asked to be disposable', () => {
  const policies = (template: Template) =>
    ['AWS::KMS::Key', 'AWS::S3::Bucket', 'AWS::RDS::DBInstance'].map((type) => template.one(type)[1].DeletionPolicy);
  assert.deepEqual(policies(postgres), ['Retain', 'Retain', 'Snapshot']);
  assert.deepEqual(policies(synth({ disposable: true, multiAz: false }).template), ['Delete', 'Delete', 'Delete']);
});

for (const [name, template] of [['postgres', postgres], ['aurora', aurora]] as const) {
  test(`${name}: only the functions reach the database, on its port, over TLS`, () => {
    const [group] = template.one('AWS::EC2::SecurityGroup', 'DatabaseDatabaseGroup');
    const ingress = template.of('AWS::EC2::SecurityGroupIngress').map(([, one]) => one.Properties);
    assert.deepEqual(ingress.map((one) => [target(one.GroupId), one.FromPort, one.ToPort]), Array(4).fill([group, 5432, 5432]));
    const sources = ingress.map((one) => target(one.SourceSecurityGroupId)).sort();
    assert.deepEqual(sources, FUNCTIONS.map((fn) => target(template.fn(fn).properties.VpcConfig.SecurityGroupIds[0])).sort());
    const parameters = [...template.of('AWS::RDS::DBParameterGroup'), ...template.of('AWS::RDS::DBClusterParameterGroup')];
    assert.ok(parameters.some(([, one]) => one.Properties.Parameters['rds.force_ssl'] === '1'));
    assert.ok(parameters.some(([, one]) => one.Properties.Parameters.log_error_verbosity === 'terse'));
  });
}

test('the functions reach 443 anywhere, and the executor 8443 for webhooks; nothing else', () => {
  for (const fn of FUNCTIONS) {
    const group = postgres.json.Resources[target(postgres.fn(fn).properties.VpcConfig.SecurityGroupIds[0])] as Resource;
    const ports = (group.Properties.SecurityGroupEgress as any[]).map((one) => [one.CidrIp, one.FromPort, one.ToPort]);
    const expected = fn === 'executor' ? [443, 8443] : [443];
    assert.deepEqual(ports, expected.map((port) => ['0.0.0.0/0', port, port]), fn);
    assert.equal(group.Properties.SecurityGroupIngress, undefined, fn);
  }
});

test('one NAT gateway unless two are asked for, and S3 without it', () => {
  assert.equal(postgres.of('AWS::EC2::NatGateway').length, 1);
  assert.equal(synth({ natGateways: 2 }).template.of('AWS::EC2::NatGateway').length, 2);
  assert.deepEqual(postgres.of('AWS::EC2::VPCEndpoint').map(([, one]) => one.Properties.VpcEndpointType), ['Gateway']);
});

for (const [name, template] of [['postgres', postgres], ['aurora', aurora], ['external', external]] as const) {
  test(`${name}: the migration runs before the functions change, and when the migrations have`, () => {
    const [migration, resource] = template.one('Custom::Migration');
    for (const fn of ['management', 'executor', 'sweeper']) {
      assert.ok(list(template.fn(fn).resource.DependsOn ?? []).includes(migration), fn);
    }
    assert.equal(target(resource.Properties.ServiceToken), template.fn('migrate').id);
    assert.match(resource.Properties.Zip, /^[0-9a-f]{64}$/);
    assert.ok(resource.Properties.Host);
  });

  test(`${name}: a function is given two whole secrets and no password`, () => {
    for (const id of ['DatabaseAppSecret', 'DatabaseSystemSecret']) {
      const [, secret] = template.one('AWS::SecretsManager::Secret', id);
      const generated = secret.Properties.GenerateSecretString;
      assert.equal(generated.GenerateStringKey, 'password');
      const text = JSON.stringify(generated.SecretStringTemplate);
      for (const key of ['username', 'host', 'port', 'dbname', 'sslmode']) assert.ok(text.includes(key), `${id}: ${key}`);
    }
    for (const fn of FUNCTIONS) {
      assert.doesNotMatch(JSON.stringify(template.fn(fn).properties.Environment), /resolve:|password/i, fn);
    }
  });
}

test('the migration can reach the database before it runs', () => {
  const [, migration] = postgres.one('Custom::Migration');
  const before = list(migration.DependsOn ?? []);
  const route = postgres.of('AWS::EC2::Route').filter(([, one]) => one.Properties.NatGatewayId);
  assert.ok(route.length > 0);
  for (const [id] of route) assert.ok(before.includes(id), id);
  const group = target(postgres.fn('migrate').properties.VpcConfig.SecurityGroupIds[0]);
  const [ingress] = postgres.of('AWS::EC2::SecurityGroupIngress').find(([, one]) => target(one.Properties.SourceSecurityGroupId) === group) ?? [];
  assert.ok(ingress && before.includes(ingress));
});

test('a new zip runs the migration again, the same one does not', () => {
  const zip = (folder: string) => synth({ database: 'external' }, folder).template.one('Custom::Migration')[1].Properties.Zip;
  const release = placeholders('2');
  assert.equal(zip(release), zip(release));
  assert.notEqual(zip(release), zip(placeholders('3')));
});

test('RDS is checked by its own roots, any other server by the system\'s', () => {
  const file = (template: Template, fn: string) => template.fn(fn).properties.Environment.Variables.CARILLON_DATABASE_CA_FILE;
  for (const fn of FUNCTIONS) {
    assert.deepEqual([postgres, aurora, external].map((template) => file(template, fn)), [
      '/var/task/infra/certs/rds-ca.pem', '/var/task/infra/certs/rds-ca.pem', undefined,
    ], fn);
  }
});

test('a database of one\'s own brings no network and no database', () => {
  const types = Object.values(external.json.Resources as Record<string, Resource>).map((one) => one.Type);
  assert.deepEqual(types.filter((type) => type.startsWith('AWS::EC2::') || type.startsWith('AWS::RDS::')), []);
  for (const fn of FUNCTIONS) assert.equal(external.fn(fn).properties.VpcConfig, undefined, fn);
  for (const name of ['DatabaseHost', 'DatabasePort', 'DatabaseName', 'DatabaseSslMode', 'DatabaseAdminSecretArn']) {
    assert.ok(external.json.Parameters[name], name);
    assert.equal(postgres.json.Parameters[name], undefined, name);
  }
});

test('a secret is named by its ARN everywhere, for a Ref is a name on an emulator', () => {
  const secrets = external.of('AWS::SecretsManager::Secret').map(([id]) => id);
  assert.equal(secrets.length, 3);
  for (const fn of FUNCTIONS) {
    const variables = Object.entries(external.fn(fn).properties.Environment.Variables);
    for (const [name, value] of variables.filter(([name]) => name.endsWith('_SECRET_ARN'))) {
      if (name === 'CARILLON_ADMIN_DATABASE_SECRET_ARN') continue;
      const [id, attribute] = (value as any)['Fn::GetAtt'];
      assert.ok(secrets.includes(id) && attribute === 'Id', `${fn} ${name}`);
    }
  }
  assert.doesNotMatch(JSON.stringify(external.json.Outputs), new RegExp(`"Ref":"(${secrets.join('|')})"`));
});
