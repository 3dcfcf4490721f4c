// The queue of wake-ups, the executor that takes them, and the group and role of the prompts' schedules.

import { Aws, Duration, Stack, Validations } from 'aws-cdk-lib';
import * as iam from 'aws-cdk-lib/aws-iam';
import * as kms from 'aws-cdk-lib/aws-kms';
import * as lambda from 'aws-cdk-lib/aws-lambda';
import * as scheduler from 'aws-cdk-lib/aws-scheduler';
import * as sqs from 'aws-cdk-lib/aws-sqs';
import { Construct } from 'constructs';
import { arnOf, Database, readSecrets } from './database';
import { Base, CarillonFunction } from './function';
import { Outlets, queue } from './outlets';

/** A prompt's timeout ends at 840 s, which leaves the executor a minute to record and deliver. */
const EXECUTOR_TIMEOUT = Duration.seconds(900);

/** Webhooks may use it beside 443. */
const WEBHOOK_PORT = 8443;

export class Queues extends Construct {
  readonly wakeUps: sqs.Queue;
  /** Wake-ups that the executor could not finish. */
  readonly deadLetters: sqs.Queue;
  /** Fires that Scheduler could not put on the queue. */
  readonly undelivered: sqs.Queue;
  readonly group: scheduler.CfnScheduleGroup;
  readonly schedulerRole: iam.Role;

  constructor(scope: Construct, id: string) {
    super(scope, id);
    const kept = { retentionPeriod: Duration.days(14), visibilityTimeout: Duration.minutes(2) };
    this.deadLetters = queue(this, 'DeadLetters', kept);
    this.undelivered = queue(this, 'Undelivered', kept);
    Validations.of(this.undelivered).acknowledge({
      id: 'AwsSolutions-SQS3',
      reason: 'It is the dead-letter queue of schedules, which the template does not hold',
    });
    this.wakeUps = queue(this, 'WakeUps', {
      // Not the usual six times: the mapping's own bound on concurrency takes no message that it cannot
      // hand over at once, and what an executor loses the sweeper finds within a minute of its lease's end.
      // A wake-up that had no time in its invocation comes back the sooner.
      visibilityTimeout: EXECUTOR_TIMEOUT.plus(Duration.minutes(1)),
      // A wake-up carries no truth: an older one says nothing that the sweeper has not said since.
      retentionPeriod: Duration.days(1),
      deadLetterQueue: { queue: this.deadLetters, maxReceiveCount: 5 },
    });
    this.group = new scheduler.CfnScheduleGroup(this, 'Schedules', { name: Aws.STACK_NAME });
    this.schedulerRole = this.makeSchedulerRole();
  }

  sends(...queues: sqs.Queue[]): iam.PolicyStatement[] {
    return [
      new iam.PolicyStatement({ actions: ['sqs:SendMessage'], resources: queues.map((one) => one.queueArn) }),
    ];
  }

  takes(...queues: sqs.Queue[]): iam.PolicyStatement[] {
    return [
      new iam.PolicyStatement({
        actions: ['sqs:ReceiveMessage', 'sqs:DeleteMessage', 'sqs:GetQueueAttributes'],
        resources: queues.map((one) => one.queueArn),
      }),
    ];
  }

  /** The variables of a function that keeps the schedules equal to the prompts. */
  schedulesEnvironment(): Record<string, string> {
    return {
      CARILLON_QUEUE_URL: this.wakeUps.queueUrl,
      CARILLON_SCHEDULE_GROUP: this.group.ref,
      CARILLON_SCHEDULER_ROLE_ARN: this.schedulerRole.roleArn,
      CARILLON_SCHEDULER_DLQ_ARN: this.undelivered.queueArn,
    };
  }

  /** What such a function must be allowed. */
  changesSchedules(): iam.PolicyStatement[] {
    return [
      new iam.PolicyStatement({
        actions: ['scheduler:CreateSchedule', 'scheduler:DeleteSchedule', 'scheduler:UpdateSchedule'],
        resources: [this.scheduleArn('*')],
      }),
      new iam.PolicyStatement({
        actions: ['iam:PassRole'],
        resources: [this.schedulerRole.roleArn],
        conditions: { StringEquals: { 'iam:PassedToService': 'scheduler.amazonaws.com' } },
      }),
    ];
  }

  /** What the search for drift needs beside it. */
  inspectsSchedules(): iam.PolicyStatement[] {
    return [
      new iam.PolicyStatement({ actions: ['scheduler:GetSchedule'], resources: [this.scheduleArn('*')] }),
      new iam.PolicyStatement({ actions: ['scheduler:ListSchedules'], resources: ['*'] }),
    ];
  }

  acknowledgeSchedules(role: iam.Role): void {
    Validations.of(role).acknowledge({
      id: `AwsSolutions-IAM5[Resource::arn:<AWS::Partition>:scheduler:<AWS::Region>:<AWS::AccountId>:schedule/<${Stack.of(this).getLogicalId(this.group)}>/*]`,
      reason: "One entry a prompt, all in this stack's own group",
    });
  }

  private scheduleArn(name: string): string {
    const resourceName = `${this.group.ref}/${name}`;
    return Stack.of(this).formatArn({ service: 'scheduler', resource: 'schedule', resourceName });
  }

  private makeSchedulerRole(): iam.Role {
    const stack = Stack.of(this);
    const role = new iam.Role(this, 'SchedulerRole', {
      assumedBy: new iam.ServicePrincipal('scheduler.amazonaws.com', {
        conditions: {
          StringEquals: { 'aws:SourceAccount': stack.account, 'aws:SourceArn': this.group.attrArn },
        },
      }),
      inlinePolicies: { may: new iam.PolicyDocument({ statements: this.sends(this.wakeUps) }) },
    });
    // Scheduler writes to its dead-letter queue as this role. The queue lets it in, so that the role
    // itself can name one queue and no other.
    this.undelivered.addToResourcePolicy(
      new iam.PolicyStatement({
        principals: [new iam.ArnPrincipal(role.roleArn)],
        actions: ['sqs:SendMessage'],
        resources: [this.undelivered.queueArn],
      }),
    );
    return role;
  }
}

export class Executor extends CarillonFunction {
  constructor(scope: Construct, id: string, base: Base, database: Database, queues: Queues, outlets: Outlets, key: kms.Key) {
    const { settings, parameters } = base;
    super(scope, id, 'executor', base, {
      memoryMb: settings.executorMemoryMb,
      timeout: EXECUTOR_TIMEOUT,
      ports: [WEBHOOK_PORT],
      environment: {
        CARILLON_ENV: parameters.environment.valueAsString,
        CARILLON_MODELS: parameters.models.valueAsString,
        ...database.environment('executor'),
        CARILLON_EXECUTOR_SLOTS: String(settings.executorSlots),
        CARILLON_QUEUE_URL: queues.wakeUps.queueUrl,
        CARILLON_DEAD_LETTER_QUEUE_URL: queues.deadLetters.queueUrl,
        CARILLON_KMS_KEY_ID: key.keyArn,
        CARILLON_BUCKET: outlets.bucket.bucketName,
        CARILLON_EVENT_BUS: outlets.bus.eventBusName,
        CARILLON_MAIL_FROM: parameters.mailFrom.valueAsString,
        CARILLON_SES_CONFIGURATION_SET: outlets.configurationSet.ref,
        CARILLON_PROVIDER_KEYS_SECRET_ARN: arnOf(outlets.providerKeys),
        OPENAI_BASE_URL: parameters.openAiBaseUrl.valueAsString,
        ANTHROPIC_BASE_URL: parameters.anthropicBaseUrl.valueAsString,
      },
      may: [
        ...queues.takes(queues.wakeUps),
        ...queues.sends(queues.wakeUps, queues.deadLetters),
        ...database.reads(),
        ...readSecrets(key, [arnOf(outlets.providerKeys)]),
        ...opensSealed(key, ['kms:Decrypt']),
        ...outlets.writesOutputs(),
        ...outlets.putsEvents(),
        ...outlets.sendsMail(),
        ...callsBedrock(),
      ],
    });
    outlets.acknowledgeWriter(this.role);
    acknowledgeBedrock(this.role);
    database.admit(this);
    new lambda.EventSourceMapping(this, 'TakesWakeUps', {
      target: this.lambda,
      eventSourceArn: queues.wakeUps.queueArn,
      batchSize: settings.executorBatch,
      // More than the executor works on at once, so that a slot that is free takes the next wake-up of the
      // same invocation, and one slow call is not paid for alone. SQS asks for a window where a batch is
      // larger than one receive.
      ...(settings.executorBatch > 10 && { maxBatchingWindow: Duration.seconds(1) }),
      reportBatchItemFailures: true,
      maxConcurrency: settings.executorConcurrency,
    });
  }
}

/** May use the key for what was sealed with it for a tenant, and for nothing without one. */
export function opensSealed(key: kms.Key, actions: string[]): iam.PolicyStatement[] {
  return [
    new iam.PolicyStatement({
      actions,
      resources: [key.keyArn],
      conditions: { Null: { 'kms:EncryptionContext:tenant_id': 'false' } },
    }),
  ];
}

function bedrockArns(partition: string, account: string): string[] {
  return [
    `arn:${partition}:bedrock:*::foundation-model/*`,
    `arn:${partition}:bedrock:*:${account}:inference-profile/*`,
  ];
}

function callsBedrock(): iam.PolicyStatement[] {
  const resources = bedrockArns(Aws.PARTITION, Aws.ACCOUNT_ID);
  return [new iam.PolicyStatement({ actions: ['bedrock:InvokeModel'], resources })];
}

function acknowledgeBedrock(role: iam.Role): void {
  for (const arn of bedrockArns('<AWS::Partition>', '<AWS::AccountId>')) {
    Validations.of(role).acknowledge({
      id: `AwsSolutions-IAM5[Resource::${arn}]`,
      reason: 'Tenants name the model, and a profile may send the call to another Region; the price list bounds both',
    });
  }
}
