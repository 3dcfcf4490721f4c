// The ways out: outputs to the bucket, mail through SES and what comes back from it, events to the bus,
// and the keys of the model providers.

import { Aws, Duration, RemovalPolicy, Stack, Validations } from 'aws-cdk-lib';
import * as events from 'aws-cdk-lib/aws-events';
import * as iam from 'aws-cdk-lib/aws-iam';
import * as kms from 'aws-cdk-lib/aws-kms';
import * as s3 from 'aws-cdk-lib/aws-s3';
import * as secretsmanager from 'aws-cdk-lib/aws-secretsmanager';
import * as ses from 'aws-cdk-lib/aws-ses';
import * as sqs from 'aws-cdk-lib/aws-sqs';
import { Construct } from 'constructs';
import { Parameters } from './parameters';
import { Settings } from './settings';

export class Outlets extends Construct {
  readonly bucket: s3.Bucket;
  readonly bus: events.EventBus;
  readonly configurationSet: ses.CfnConfigurationSet;
  readonly providerKeys: secretsmanager.Secret;
  /** What SES says of mail that bounced or was complained of, as EventBridge wraps it. */
  readonly mailEvents: sqs.Queue;

  constructor(
    scope: Construct,
    id: string,
    settings: Settings,
    private readonly parameters: Parameters,
    private readonly key: kms.Key,
    deadLetters: sqs.Queue,
  ) {
    super(scope, id);
    this.bucket = this.makeBucket(settings);
    this.bus = new events.EventBus(this, 'Bus', { eventBusName: `${Aws.STACK_NAME}-events` });
    this.providerKeys = new secretsmanager.Secret(this, 'ProviderKeys', {
      description: 'Carillon: {"openai": "…", "anthropic": "…"}, filled in by the operator',
      encryptionKey: key,
      generateSecretString: { secretStringTemplate: '{}', generateStringKey: 'placeholder' },
    });
    Validations.of(this.providerKeys).acknowledge({
      id: 'AwsSolutions-SMG4',
      reason: 'The keys are made at the providers, which no function here can ask for new ones',
    });
    this.mailEvents = queue(this, 'MailEvents', {
      visibilityTimeout: Duration.minutes(2),
      retentionPeriod: Duration.days(14),
      deadLetterQueue: { queue: deadLetters, maxReceiveCount: 5 },
    });
    this.configurationSet = this.makeConfigurationSet();
  }

  /** May write an output once, and read back the one that is there already. */
  writesOutputs(): iam.PolicyStatement[] {
    return [
      new iam.PolicyStatement({ actions: ['s3:PutObject', 's3:GetObject'], resources: [this.outputs()] }),
      this.throughBucket(['kms:Decrypt', 'kms:GenerateDataKey']),
    ];
  }

  readsOutputs(): iam.PolicyStatement[] {
    return [
      new iam.PolicyStatement({ actions: ['s3:GetObject'], resources: [this.outputs()] }),
      this.throughBucket(['kms:Decrypt']),
    ];
  }

  putsEvents(): iam.PolicyStatement[] {
    return [new iam.PolicyStatement({ actions: ['events:PutEvents'], resources: [this.bus.eventBusArn] })];
  }

  /** May send as the one sender, and only so that bounces come back here. */
  sendsMail(): iam.PolicyStatement[] {
    const of = (resource: string, resourceName: string) =>
      Stack.of(this).formatArn({ service: 'ses', resource, resourceName });
    return [
      new iam.PolicyStatement({
        actions: ['ses:SendRawEmail'],
        resources: [of('identity', '*'), of('configuration-set', this.configurationSet.ref)],
        conditions: { StringEquals: { 'ses:FromAddress': this.parameters.mailFrom.valueAsString } },
      }),
    ];
  }

  acknowledgeWriter(role: iam.Role): void {
    Validations.of(role).acknowledge(
      {
        id: `AwsSolutions-IAM5[Resource::<${this.logicalId(this.bucket)}.Arn>/tenants/*]`,
        reason: 'One object a run: the keys are not known before. Outside tenants/ it may do nothing',
      },
      {
        id: 'AwsSolutions-IAM5[Resource::arn:<AWS::Partition>:ses:<AWS::Region>:<AWS::AccountId>:identity/*]',
        reason: 'The sender may be verified as an address or as its domain; the condition names the one address',
      },
    );
  }

  acknowledgeReader(role: iam.Role): void {
    Validations.of(role).acknowledge({
      id: `AwsSolutions-IAM5[Resource::<${this.logicalId(this.bucket)}.Arn>/tenants/*]`,
      reason: 'One object a run: the keys are not known before. Outside tenants/ it may do nothing',
    });
  }

  private outputs(): string {
    return this.bucket.arnForObjects('tenants/*');
  }

  private throughBucket(actions: string[]): iam.PolicyStatement {
    return new iam.PolicyStatement({
      actions,
      resources: [this.key.keyArn],
      conditions: { StringEquals: { 'kms:ViaService': `s3.${Stack.of(this).region}.amazonaws.com` } },
    });
  }

  private logicalId(construct: Construct): string {
    const stack = Stack.of(this);
    return stack.getLogicalId(construct.node.defaultChild as never);
  }

  private makeBucket(settings: Settings): s3.Bucket {
    const bucket = new s3.Bucket(this, 'Outputs', {
      encryption: s3.BucketEncryption.KMS,
      encryptionKey: this.key,
      bucketKeyEnabled: true,
      blockPublicAccess: s3.BlockPublicAccess.BLOCK_ALL,
      objectOwnership: s3.ObjectOwnership.BUCKET_OWNER_ENFORCED,
      enforceSSL: true,
      versioned: true,
      removalPolicy: settings.disposable ? RemovalPolicy.DESTROY : RemovalPolicy.RETAIN,
      lifecycleRules: [
        {
          id: 'leftovers',
          abortIncompleteMultipartUploadAfter: Duration.days(7),
          noncurrentVersionExpiration: Duration.days(30),
          expiredObjectDeleteMarker: true,
        },
      ],
    });
    Validations.of(bucket).acknowledge({
      id: 'AwsSolutions-S1',
      reason: 'Two roles alone reach it, and each write stands in the database; CloudTrail tells the rest',
    });
    return bucket;
  }

  private makeConfigurationSet(): ses.CfnConfigurationSet {
    const set = new ses.CfnConfigurationSet(this, 'Mail', {
      deliveryOptions: { tlsPolicy: 'REQUIRE' },
      reputationOptions: { reputationMetricsEnabled: true },
      // Beside our own list a tenant, which the executor asks first: it keeps the sender's good name.
      suppressionOptions: { suppressedReasons: ['BOUNCE', 'COMPLAINT'] },
    });
    const stack = Stack.of(this);
    new ses.CfnConfigurationSetEventDestination(this, 'MailTold', {
      configurationSetName: set.ref,
      eventDestination: {
        name: 'default-bus',
        enabled: true,
        matchingEventTypes: ['bounce', 'complaint'],
        // SES takes no other bus than the account's default one.
        eventBridgeDestination: {
          eventBusArn: stack.formatArn({ service: 'events', resource: 'event-bus', resourceName: 'default' }),
        },
      },
    });
    const rule = new events.CfnRule(this, 'MailRule', {
      description: 'Carillon: bounces and complaints on their way to the sweeper',
      eventPattern: {
        source: ['aws.ses'],
        detail: {
          eventType: ['Bounce', 'Complaint'],
          mail: { tags: { 'ses:configuration-set': [set.ref] } },
        },
      },
      targets: [{ id: 'mail-events', arn: this.mailEvents.queueArn }],
    });
    this.mailEvents.addToResourcePolicy(
      new iam.PolicyStatement({
        principals: [new iam.ServicePrincipal('events.amazonaws.com')],
        actions: ['sqs:SendMessage'],
        resources: [this.mailEvents.queueArn],
        conditions: { ArnEquals: { 'aws:SourceArn': rule.attrArn } },
      }),
    );
    return set;
  }
}

/** A queue as all of ours are: encrypted at rest without a key to pay for, and closed to plain HTTP. */
export function queue(scope: Construct, id: string, props: sqs.QueueProps): sqs.Queue {
  return new sqs.Queue(scope, id, { encryption: sqs.QueueEncryption.SQS_MANAGED, enforceSSL: true, ...props });
}
