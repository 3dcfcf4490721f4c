// The sweeper: invoked every minute, one at a time, it finds what no wake-up has found.

import { Duration, Stack, Validations } from 'aws-cdk-lib';
import * as iam from 'aws-cdk-lib/aws-iam';
import * as lambda from 'aws-cdk-lib/aws-lambda';
import * as scheduler from 'aws-cdk-lib/aws-scheduler';
import { Construct } from 'constructs';
import { Database } from './database';
import { Queues } from './executor';
import { Base, CarillonFunction } from './function';
import { Outlets } from './outlets';

const PERIOD = Duration.minutes(1);

export class Sweeper extends CarillonFunction {
  constructor(scope: Construct, id: string, base: Base, database: Database, queues: Queues, outlets: Outlets) {
    const inbound = [queues.deadLetters, queues.undelivered, outlets.mailEvents];
    super(scope, id, 'sweeper', base, {
      memoryMb: 128,
      // It ends before the next one begins.
      timeout: Duration.seconds(55),
      reservedConcurrency: 1,
      environment: {
        CARILLON_ENV: base.parameters.environment.valueAsString,
        ...database.environment('sweeper'),
        ...queues.schedulesEnvironment(),
        CARILLON_DEAD_LETTER_QUEUE_URL: queues.deadLetters.queueUrl,
        CARILLON_SCHEDULER_DEAD_LETTER_QUEUE_URL: queues.undelivered.queueUrl,
        CARILLON_MAIL_EVENTS_QUEUE_URL: outlets.mailEvents.queueUrl,
        CARILLON_EVENT_BUS: outlets.bus.eventBusName,
      },
      may: [
        ...database.reads(),
        ...queues.sends(queues.wakeUps),
        ...queues.takes(...inbound),
        ...queues.changesSchedules(),
        ...queues.inspectsSchedules(),
        ...outlets.putsEvents(),
      ],
    });
    queues.acknowledgeSchedules(this.role);
    acknowledgeList(this.role);
    database.admit(this);
    this.invokeEachMinute();
  }

  private invokeEachMinute(): void {
    const stack = Stack.of(this);
    const role = new iam.Role(this, 'ClockRole', {
      assumedBy: new iam.ServicePrincipal('scheduler.amazonaws.com', {
        conditions: {
          StringEquals: {
            'aws:SourceAccount': stack.account,
            'aws:SourceArn': stack.formatArn({ service: 'scheduler', resource: 'schedule-group', resourceName: 'default' }),
          },
        },
      }),
      inlinePolicies: {
        may: new iam.PolicyDocument({
          statements: [
            new iam.PolicyStatement({
              actions: ['lambda:InvokeFunction'],
              resources: [this.lambda.functionArn],
            }),
          ],
        }),
      },
    });
    // Not in the prompts' group: what is listed there are prompts, and nothing else.
    new scheduler.CfnSchedule(this, 'Clock', {
      description: 'Carillon: the sweeper, every minute',
      scheduleExpression: `rate(${PERIOD.toMinutes()} minute)`,
      flexibleTimeWindow: { mode: 'OFF' },
      target: {
        arn: this.lambda.functionArn,
        roleArn: role.roleArn,
        input: '{}',
        // A sweep that was missed is made by the next one.
        retryPolicy: { maximumRetryAttempts: 0, maximumEventAgeInSeconds: 60 },
      },
    });
    new lambda.EventInvokeConfig(this, 'NoQueueOfSweeps', {
      function: this.lambda,
      maxEventAge: PERIOD,
      retryAttempts: 0,
    });
  }
}

function acknowledgeList(role: iam.Role): void {
  Validations.of(role).acknowledge({
    id: 'AwsSolutions-IAM5[Resource::*]',
    reason: 'ListSchedules takes no resource; the sweeper names its own group in each call',
  });
}
