// The network, the database, its three secrets, and the migration that brings it to the shape which the
// functions expect.

import { CfnParameter, CfnResource, CustomResource, Duration, RemovalPolicy, Stack, Validations } from 'aws-cdk-lib';
import * as ec2 from 'aws-cdk-lib/aws-ec2';
import * as iam from 'aws-cdk-lib/aws-iam';
import * as kms from 'aws-cdk-lib/aws-kms';
import * as logs from 'aws-cdk-lib/aws-logs';
import * as rds from 'aws-cdk-lib/aws-rds';
import * as secretsmanager from 'aws-cdk-lib/aws-secretsmanager';
import { Construct } from 'constructs';
import { Base, CarillonFunction, Network } from './function';
import { POOLS, Settings, SIZES } from './settings';

const PORT = 5432;
const NAME = 'carillon';
const BACKUP = Duration.days(14);

/** Frees the connections of functions that Lambda froze or replaced. */
const IDLE_SESSION_TIMEOUT_MS = 600_000;

/** Where the database is, and who opens it. */
interface Place {
  readonly host: string;
  readonly port: string;
  readonly name: string;
  readonly sslmode: string;
  readonly adminSecretArn: string;
  readonly securityGroup?: ec2.SecurityGroup;
}

export class Database extends Construct {
  readonly network: Network | undefined;
  readonly appSecret: secretsmanager.Secret;
  readonly systemSecret: secretsmanager.Secret;
  /** The resource in the database's own metrics. */
  readonly metrics: { dimension: string; id: string } | undefined;
  private readonly place: Place;

  constructor(
    scope: Construct,
    id: string,
    private readonly settings: Settings,
    private readonly key: kms.Key,
  ) {
    super(scope, id);
    if (settings.database === 'external') {
      this.place = this.external();
    } else {
      const vpc = this.makeNetwork();
      this.network = { vpc, subnets: { subnetType: ec2.SubnetType.PRIVATE_WITH_EGRESS } };
      const made = settings.database === 'postgres' ? this.postgres(vpc) : this.aurora(vpc);
      this.place = made.place;
      this.metrics = made.metrics;
    }
    this.appSecret = this.roleSecret('AppSecret', 'carillon_app');
    this.systemSecret = this.roleSecret('SystemSecret', 'carillon_system');
  }

  /** The variables of a function that works with the database. */
  environment(name: keyof typeof POOLS): Record<string, string> {
    return {
      ...this.secrets(),
      CARILLON_DATABASE_CONNECTIONS_MAX: String(POOLS[name].app),
      CARILLON_SYSTEM_DATABASE_CONNECTIONS_MAX: String(POOLS[name].system),
    };
  }

  /** What such a function must be allowed. */
  reads(): iam.PolicyStatement[] {
    return readSecrets(this.key, [arnOf(this.appSecret), arnOf(this.systemSecret)]);
  }

  /** Opens the way from a function to the database. */
  admit(fn: CarillonFunction): void {
    const group = this.place.securityGroup;
    if (group && fn.securityGroup) fn.lambda.connections.allowTo(group, ec2.Port.tcp(PORT), 'PostgreSQL');
  }

  /**
   * Runs when the migrations, or the database, have changed, and before any function in `functions`
   * does. They wait for its answer.
   */
  migrateBefore(base: Base, functions: CarillonFunction[]): CarillonFunction {
    const migrate = new CarillonFunction(this, 'Migrate', 'migrate', base, {
      memoryMb: 256,
      timeout: Duration.minutes(10),
      reservedConcurrency: 1,
      environment: { ...this.secrets(), CARILLON_ADMIN_DATABASE_SECRET_ARN: this.place.adminSecretArn },
      may: readSecrets(this.key, [
        arnOf(this.appSecret),
        arnOf(this.systemSecret),
        this.place.adminSecretArn,
      ]),
    });
    this.admit(migrate);
    const migration = new CustomResource(this, 'Migration', {
      serviceToken: migrate.lambda.functionArn,
      resourceType: 'Custom::Migration',
      serviceTimeout: Duration.minutes(11),
      properties: { Zip: migrate.zipHash, Host: this.place.host, Name: this.place.name },
    });
    // Routes and rules of the network too: without them the migration could not reach anything.
    const ways = [this.network?.vpc, this.place.securityGroup, migrate.securityGroup];
    migration.node.addDependency(...ways.filter((way) => way !== undefined));
    for (const fn of functions) {
      (fn.lambda.node.defaultChild as CfnResource).addResourceDependency(migration.node.defaultChild as CfnResource);
    }
    return migrate;
  }

  private secrets(): Record<string, string> {
    return {
      CARILLON_DATABASE_SECRET_ARN: arnOf(this.appSecret),
      CARILLON_SYSTEM_DATABASE_SECRET_ARN: arnOf(this.systemSecret),
      // Amazon's own roots of RDS are in no system's store. Another server's are, or TLS is off.
      ...(this.network && { CARILLON_DATABASE_CA_FILE: '/var/task/infra/certs/rds-ca.pem' }),
    };
  }

  private external(): Place {
    const text = (id: string, description: string, otherwise?: string) =>
      new CfnParameter(Stack.of(this), id, {
        type: 'String',
        description,
        ...(otherwise !== undefined && { default: otherwise }),
      }).valueAsString;
    Validations.of(Stack.of(this)).acknowledge({
      id: 'CloudFormation-Validate::W2509',
      reason: 'DatabaseAdminSecretArn is the name of a secret, not what it holds',
    });
    return {
      host: text('DatabaseHost', 'The host of a PostgreSQL 15 or newer that the functions can reach'),
      port: text('DatabasePort', 'Its port', String(PORT)),
      name: text('DatabaseName', 'The database; it must be there', NAME),
      sslmode: text('DatabaseSslMode', 'disable only for a server on this machine', 'require'),
      adminSecretArn: text('DatabaseAdminSecretArn', 'A secret {"username", "password"} of a role that may create roles'),
    };
  }

  private makeNetwork(): ec2.Vpc {
    const vpc = new ec2.Vpc(this, 'Vpc', {
      maxAzs: 2,
      natGateways: this.settings.natGateways,
      // The custom resource that empties the default group would be another function to look after.
      restrictDefaultSecurityGroup: false,
      subnetConfiguration: [
        { name: 'Public', subnetType: ec2.SubnetType.PUBLIC, cidrMask: 24, mapPublicIpOnLaunch: false },
        { name: 'Functions', subnetType: ec2.SubnetType.PRIVATE_WITH_EGRESS, cidrMask: 20 },
        { name: 'Database', subnetType: ec2.SubnetType.PRIVATE_ISOLATED, cidrMask: 24 },
      ],
    });
    // Free, and keeps outputs off the NAT gateway.
    vpc.addGatewayEndpoint('S3', { service: ec2.GatewayVpcEndpointAwsService.S3 });
    const log = new logs.LogGroup(this, 'RejectedTraffic', {
      retention: this.settings.logDays,
      removalPolicy: RemovalPolicy.DESTROY,
    });
    vpc.addFlowLog('Rejected', {
      trafficType: ec2.FlowLogTrafficType.REJECT,
      destination: ec2.FlowLogDestination.toCloudWatchLogs(log),
    });
    return vpc;
  }

  private postgres(vpc: ec2.Vpc) {
    const engine = rds.DatabaseInstanceEngine.postgres({ version: rds.PostgresEngineVersion.VER_17 });
    const securityGroup = this.databaseGroup(vpc);
    const instance = new rds.DatabaseInstance(this, 'Postgres', {
      engine,
      instanceType: new ec2.InstanceType(SIZES[this.settings.size].instance),
      multiAz: this.settings.multiAz,
      vpc,
      vpcSubnets: { subnetType: ec2.SubnetType.PRIVATE_ISOLATED },
      securityGroups: [securityGroup],
      parameterGroup: new rds.ParameterGroup(this, 'PostgresParameters', { engine, parameters: this.parameters() }),
      credentials: rds.Credentials.fromUsername('carillon_admin', { encryptionKey: this.key }),
      manageMasterUserPassword: true,
      databaseName: NAME,
      storageType: rds.StorageType.GP3,
      allocatedStorage: 20,
      maxAllocatedStorage: 1000,
      storageEncryptionKey: this.key,
      caCertificate: rds.CaCertificate.RDS_CA_RSA2048_G1,
      autoMinorVersionUpgrade: true,
      copyTagsToSnapshot: true,
      ...this.keeping(),
    });
    this.acknowledgePort(instance);
    if (!this.settings.multiAz) this.acknowledgeOneZone(instance);
    return {
      place: this.placeOf(instance.instanceEndpoint, instance.secret, securityGroup),
      metrics: { dimension: 'DBInstanceIdentifier', id: instance.instanceIdentifier },
    };
  }

  private aurora(vpc: ec2.Vpc) {
    const engine = rds.DatabaseClusterEngine.auroraPostgres({ version: rds.AuroraPostgresEngineVersion.VER_17_7 });
    const securityGroup = this.databaseGroup(vpc);
    const instance = {
      caCertificate: rds.CaCertificate.RDS_CA_RSA2048_G1,
      autoMinorVersionUpgrade: true,
    };
    const { backupRetention, deletionProtection, removalPolicy } = this.keeping();
    const cluster = new rds.DatabaseCluster(this, 'Aurora', {
      engine,
      writer: rds.ClusterInstance.serverlessV2('Writer', instance),
      readers: this.settings.multiAz
        ? [rds.ClusterInstance.serverlessV2('Standby', { ...instance, scaleWithWriter: true })]
        : [],
      serverlessV2MinCapacity: 0.5,
      serverlessV2MaxCapacity: 8,
      vpc,
      vpcSubnets: { subnetType: ec2.SubnetType.PRIVATE_ISOLATED },
      securityGroups: [securityGroup],
      parameterGroup: new rds.ParameterGroup(this, 'AuroraParameters', { engine, parameters: this.parameters() }),
      credentials: rds.Credentials.fromUsername('carillon_admin', { encryptionKey: this.key }),
      manageMasterUserPassword: true,
      defaultDatabaseName: NAME,
      storageEncryptionKey: this.key,
      copyTagsToSnapshot: true,
      backup: { retention: backupRetention },
      deletionProtection,
      removalPolicy,
    });
    this.acknowledgePort(cluster);
    Validations.of(cluster).acknowledge({
      id: 'AwsSolutions-RDS6',
      reason: 'Tokens of IAM would be asked for at each new connection; the roles have passwords of 40 signs',
    });
    return {
      place: this.placeOf(cluster.clusterEndpoint, cluster.secret, securityGroup),
      metrics: { dimension: 'DBClusterIdentifier', id: cluster.clusterIdentifier },
    };
  }

  private databaseGroup(vpc: ec2.Vpc): ec2.SecurityGroup {
    return new ec2.SecurityGroup(this, 'DatabaseGroup', {
      vpc,
      description: 'Carillon: the database; the functions alone come in',
      allowAllOutbound: false,
    });
  }

  private parameters(): Record<string, string> {
    return {
      max_connections: String(this.settings.connectionsMax),
      idle_session_timeout: String(IDLE_SESSION_TIMEOUT_MS),
      'rds.force_ssl': '1',
      // The details of a refused statement are a row's values, and a log is no place for them.
      log_error_verbosity: 'terse',
    };
  }

  private keeping() {
    const { disposable } = this.settings;
    return {
      backupRetention: disposable ? Duration.days(1) : BACKUP,
      deletionProtection: !disposable,
      removalPolicy: disposable ? RemovalPolicy.DESTROY : RemovalPolicy.SNAPSHOT,
    };
  }

  private placeOf(endpoint: rds.Endpoint, secret: secretsmanager.ISecret | undefined, securityGroup: ec2.SecurityGroup): Place {
    if (!secret) throw new Error('the database has no secret of its own');
    return {
      host: endpoint.hostname,
      port: String(PORT),
      name: NAME,
      sslmode: 'require',
      adminSecretArn: secret.secretArn,
      securityGroup,
    };
  }

  /** A login role's secret, whole: with it alone a function can connect. */
  private roleSecret(id: string, username: string): secretsmanager.Secret {
    const { host, port, name, sslmode } = this.place;
    const address = Stack.of(this).toJsonString({ username, host, port, dbname: name, sslmode, engine: 'postgres' });
    const secret = new secretsmanager.Secret(this, id, {
      description: `Carillon: the database role ${username}`,
      encryptionKey: this.key,
      generateSecretString: {
        secretStringTemplate: address,
        generateStringKey: 'password',
        // The text stands in a connection's URL and in a statement.
        excludePunctuation: true,
        passwordLength: 40,
      },
    });
    Validations.of(secret).acknowledge({
      id: 'AwsSolutions-SMG4',
      reason: 'The migration sets this password; docs/deploy.md says how to change it',
    });
    return secret;
  }

  private acknowledgePort(database: Construct): void {
    Validations.of(database).acknowledge({
      id: 'AwsSolutions-RDS11',
      reason: 'Another port hides nothing: no address outside the security groups of the functions gets in',
    });
    if (this.settings.disposable) {
      Validations.of(database).acknowledge({
        id: 'AwsSolutions-RDS10',
        reason: 'disposable=true was asked for: the stack must be deletable with its data',
      });
    }
  }

  private acknowledgeOneZone(database: Construct): void {
    Validations.of(database).acknowledge({
      id: 'AwsSolutions-RDS3',
      reason: 'multiAz=false was asked for: half the price, and a restore instead of a failover',
    });
  }
}

/**
 * The ARN of a secret as an attribute. Its Ref is the same on AWS, but an emulator's Ref is the name, which
 * the functions refuse.
 */
export function arnOf(secret: secretsmanager.Secret): string {
  return (secret.node.defaultChild as secretsmanager.CfnSecret).attrId;
}

/** May read these secrets, through Secrets Manager alone. */
export function readSecrets(key: kms.Key, arns: string[]): iam.PolicyStatement[] {
  return [
    new iam.PolicyStatement({ actions: ['secretsmanager:GetSecretValue'], resources: arns }),
    new iam.PolicyStatement({
      actions: ['kms:Decrypt'],
      resources: [key.keyArn],
      conditions: { StringEquals: { 'kms:ViaService': `secretsmanager.${Stack.of(key).region}.amazonaws.com` } },
    }),
  ];
}
