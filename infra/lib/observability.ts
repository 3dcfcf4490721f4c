// What tells the operator: metrics from the functions' log lines, alarms, a dashboard.
//
// The lines that are counted, and their fields, stand in docs/deploy.md: a line that is worded otherwise
// is not counted.

import { Aws, Duration, Stack } from 'aws-cdk-lib';
import * as cloudwatch from 'aws-cdk-lib/aws-cloudwatch';
import * as actions from 'aws-cdk-lib/aws-cloudwatch-actions';
import * as iam from 'aws-cdk-lib/aws-iam';
import * as kms from 'aws-cdk-lib/aws-kms';
import * as logs from 'aws-cdk-lib/aws-logs';
import * as sns from 'aws-cdk-lib/aws-sns';
import * as sqs from 'aws-cdk-lib/aws-sqs';
import { Construct } from 'constructs';
import { Api } from './api';
import { Database } from './database';
import { Queues } from './executor';
import { CarillonFunction } from './function';
import { Parameters } from './parameters';
import { Settings } from './settings';

const FAILURE_PERCENT_MAX = 10;
const TIMEOUTS_MAX = 5;
const QUEUE_AGE_S_MAX = 300;
/** A few entries are repaired after any outage of Scheduler; more than these say that it goes on. */
const DRIFT_MAX = 20;

export interface Watched {
  readonly settings: Settings;
  readonly parameters: Parameters;
  readonly key: kms.Key;
  readonly database: Database;
  readonly queues: Queues;
  readonly api: Api;
  readonly management: CarillonFunction;
  readonly executor: CarillonFunction;
  readonly sweeper: CarillonFunction;
}

export class Observability extends Construct {
  private readonly topic: sns.Topic;
  private readonly namespace = `Carillon/${Aws.STACK_NAME}`;
  private readonly alarms: cloudwatch.Alarm[] = [];
  private readonly alarmScope = new Construct(this, 'Alarm');

  constructor(
    scope: Construct,
    id: string,
    private readonly watched: Watched,
  ) {
    super(scope, id);
    this.topic = this.makeTopic();
    const ended = this.countRuns();
    const drift = this.countDrift();
    const dead = this.countLines('DeadLetters', watched.sweeper, '$.message = "dead letter*"');
    this.alarmOnRuns(ended.failurePercent, ended.timedOut);
    this.alarmOnQueues(dead);
    this.alarmOnSweeper(drift);
    if (watched.database.metrics) this.alarmOnDatabase(watched.database.metrics);
    this.makeDashboard(ended, drift);
  }

  private makeTopic(): sns.Topic {
    const topic = new sns.Topic(this, 'Topic', {
      displayName: 'Carillon alarms',
      masterKey: this.watched.key,
      enforceSSL: true,
    });
    this.watched.key.addToResourcePolicy(
      new iam.PolicyStatement({
        principals: [new iam.ServicePrincipal('cloudwatch.amazonaws.com')],
        actions: ['kms:Decrypt', 'kms:GenerateDataKey*'],
        resources: ['*'],
        conditions: { StringEquals: { 'aws:SourceAccount': Stack.of(this).account } },
      }),
    );
    const mailed = new sns.CfnSubscription(this, 'Mailed', {
      topicArn: topic.topicArn,
      protocol: 'email',
      endpoint: this.watched.parameters.alarmEmail.valueAsString,
    });
    mailed.cfnOptions.condition = this.watched.parameters.given(this.watched.parameters.alarmEmail);
    return topic;
  }

  private countRuns() {
    const { executor } = this.watched;
    const status = (name: string) => `($.['run.status'] = "${name}")`;
    const ended = '($.message = "run ended")';
    // A run without destinations ends with its answer, and a failed one with its last try.
    const succeeded = `(${ended} || ($.message = "model answered")) && ${status('succeeded')}`;
    const lastTry = '($.message = "try failed") && ($.[\'run.ended\'] IS TRUE)';
    const timedOut = `${lastTry} && ($.['error.code'] = "provider_timeout")`;
    const failed = `(${ended} && ${status('failed')}) || (${lastTry} && ($.['error.code'] != "provider_timeout"))`;
    // The average of 100 for each run that failed and 0 for each that did not is the rate itself.
    this.countLines('FailurePercent', executor, succeeded, { id: 'Succeeded0', value: '0' });
    this.countLines('FailurePercent', executor, timedOut, { id: 'TimedOut100', value: '100' });
    return {
      failurePercent: this.countLines('FailurePercent', executor, failed, { id: 'Failed100', value: '100' }),
      succeeded: this.countLines('RunsSucceeded', executor, succeeded),
      failed: this.countLines('RunsFailed', executor, failed),
      timedOut: this.countLines('RunsTimedOut', executor, timedOut),
    };
  }

  /** Entries that did not equal their prompts, and entries that could not be made equal. */
  private countDrift(): cloudwatch.Metric {
    const repaired = '$.message = "entries repaired"';
    const add = (field: string) =>
      this.countLines('Drift', this.watched.sweeper, repaired, { id: `Drift-${field}`, value: `$.${field}` });
    add('drifted');
    add('orphans');
    return add('failed');
  }

  /** A metric filter on a function's log; gives the metric. */
  private countLines(
    metricName: string,
    fn: CarillonFunction,
    condition: string,
    as: { id: string; value: string } = { id: metricName, value: '1' },
  ): cloudwatch.Metric {
    new logs.MetricFilter(this, as.id, {
      logGroup: fn.logGroup,
      filterPattern: logs.FilterPattern.literal(`{ ${condition} }`),
      metricNamespace: this.namespace,
      metricName,
      metricValue: as.value,
    });
    return new cloudwatch.Metric({ namespace: this.namespace, metricName });
  }

  private alarmOnRuns(failurePercent: cloudwatch.Metric, timedOut: cloudwatch.Metric): void {
    this.alarm('FailureRate', {
      description: `Warning: more than ${FAILURE_PERCENT_MAX}% of the runs of 5 minutes failed`,
      metric: failurePercent.with({ statistic: 'Average', period: Duration.minutes(5) }),
      above: FAILURE_PERCENT_MAX,
    });
    this.alarm('Timeouts', {
      description: `Critical: more than ${TIMEOUTS_MAX} runs of 10 minutes timed out`,
      metric: timedOut.with({ statistic: 'Sum', period: Duration.minutes(10) }),
      above: TIMEOUTS_MAX,
    });
  }

  private alarmOnQueues(dead: cloudwatch.Metric): void {
    const { queues } = this.watched;
    this.alarm('QueueAge', {
      description: `The oldest wake-up has waited over ${QUEUE_AGE_S_MAX} s: the executor does not keep up`,
      metric: queues.wakeUps.metricApproximateAgeOfOldestMessage({ statistic: 'Maximum', period: Duration.minutes(1) }),
      above: QUEUE_AGE_S_MAX,
      periods: 5,
    });
    const notEmpty = (id: string, queue: sqs.Queue, description: string) =>
      this.alarm(id, {
        description,
        metric: queue.metricApproximateNumberOfMessagesVisible({ statistic: 'Maximum', period: Duration.minutes(5) }),
        above: 0,
      });
    notEmpty('DeadLettersNotEmpty', queues.deadLetters, 'The executor gave up wake-ups');
    notEmpty('UndeliveredNotEmpty', queues.undelivered, 'Scheduler could not put fires on the queue');
    // The sweeper empties both within a minute, which the samples of their length may miss.
    this.alarm('DeadLetterRecorded', {
      description: 'A dead letter ended a run as failed; its reason stands in the run',
      metric: dead.with({ statistic: 'Sum', period: Duration.minutes(5) }),
      above: 0,
    });
  }

  private alarmOnSweeper(drift: cloudwatch.Metric): void {
    this.alarm('Drift', {
      description: `Over ${DRIFT_MAX} schedule entries of 15 minutes did not equal their prompts`,
      metric: drift.with({ statistic: 'Sum', period: Duration.minutes(15) }),
      above: DRIFT_MAX,
    });
    const alarm = this.alarm('SweeperSilent', {
      description: 'No sweep for 5 minutes: what no wake-up finds is not found at all',
      metric: this.watched.sweeper.lambda.metricInvocations({ statistic: 'Sum', period: Duration.minutes(5) }),
      below: 1,
    });
    this.alarm('SweeperFails', {
      description: 'Three sweeps of 5 minutes ended in an error',
      metric: this.watched.sweeper.lambda.metricErrors({ statistic: 'Sum', period: Duration.minutes(5) }),
      above: 2,
    });
    (alarm.node.defaultChild as cloudwatch.CfnAlarm).treatMissingData = 'breaching';
  }

  private alarmOnDatabase(database: { dimension: string; id: string }): void {
    const metric = this.databaseMetric(database);
    const limit = Math.floor(this.watched.settings.connectionsMax * 0.9);
    this.alarm('DatabaseConnections', {
      description: `More than ${limit} of ${this.watched.settings.connectionsMax} connections are open`,
      metric: metric('DatabaseConnections', 'Maximum'),
      above: limit,
    });
    if (this.watched.settings.database === 'postgres') {
      this.alarm('DatabaseStorage', {
        description: 'Less than 2 GB of storage is free, and growing has not helped',
        metric: metric('FreeStorageSpace', 'Minimum'),
        below: 2_000_000_000,
      });
    }
  }

  private databaseMetric(database: { dimension: string; id: string }) {
    return (metricName: string, statistic: string) =>
      new cloudwatch.Metric({
        namespace: 'AWS/RDS',
        metricName,
        dimensionsMap: { [database.dimension]: database.id },
        statistic,
        period: Duration.minutes(5),
      });
  }

  private alarm(
    id: string,
    props: { description: string; metric: cloudwatch.Metric; periods?: number } & ({ above: number } | { below: number }),
  ): cloudwatch.Alarm {
    const alarm = new cloudwatch.Alarm(this.alarmScope, id, {
      alarmDescription: props.description,
      metric: props.metric,
      evaluationPeriods: props.periods ?? 1,
      treatMissingData: cloudwatch.TreatMissingData.NOT_BREACHING,
      ...('above' in props
        ? { threshold: props.above, comparisonOperator: cloudwatch.ComparisonOperator.GREATER_THAN_THRESHOLD }
        : { threshold: props.below, comparisonOperator: cloudwatch.ComparisonOperator.LESS_THAN_THRESHOLD }),
    });
    alarm.addAlarmAction(new actions.SnsAction(this.topic));
    this.alarms.push(alarm);
    return alarm;
  }

  private makeDashboard(ended: ReturnType<Observability['countRuns']>, drift: cloudwatch.Metric): void {
    const { api, database, executor, management, queues, sweeper } = this.watched;
    const dashboard = new cloudwatch.Dashboard(this, 'Dashboard', { dashboardName: Aws.STACK_NAME });
    const graph = (title: string, left: cloudwatch.IMetric[], right: cloudwatch.IMetric[] = []) =>
      new cloudwatch.GraphWidget({ title, left, right, width: 8, height: 6 });
    const sum = (metric: cloudwatch.Metric) => metric.with({ statistic: 'Sum' });
    const apiMetric = (metricName: string, statistic: string) =>
      new cloudwatch.Metric({ namespace: 'AWS/ApiGateway', metricName, dimensionsMap: { ApiId: api.id }, statistic });
    dashboard.addWidgets(
      new cloudwatch.AlarmStatusWidget({ title: 'Alarms', alarms: this.alarms, width: 24, height: 3 }),
    );
    dashboard.addWidgets(
      graph('Runs', [sum(ended.succeeded), sum(ended.failed), sum(ended.timedOut)]),
      graph('Failure rate, %', [ended.failurePercent.with({ statistic: 'Average' })]),
      graph('Drift', [sum(drift)]),
    );
    dashboard.addWidgets(
      graph(
        'Wake-ups',
        [queues.wakeUps.metricApproximateNumberOfMessagesVisible(), queues.wakeUps.metricApproximateNumberOfMessagesNotVisible()],
        [queues.wakeUps.metricApproximateAgeOfOldestMessage()],
      ),
      graph('Dead letters', [
        queues.deadLetters.metricApproximateNumberOfMessagesVisible(),
        queues.undelivered.metricApproximateNumberOfMessagesVisible(),
      ]),
      graph('API', [sum(apiMetric('Count', 'Sum')), apiMetric('4xx', 'Sum'), apiMetric('5xx', 'Sum')], [apiMetric('Latency', 'p99')]),
    );
    dashboard.addWidgets(
      graph('Functions: concurrency', [management, executor, sweeper].map((fn) => fn.lambda.metric('ConcurrentExecutions', { statistic: 'Maximum' }))),
      graph('Functions: errors', [management, executor, sweeper].map((fn) => fn.lambda.metricErrors())),
      graph('Functions: duration', [management, executor, sweeper].map((fn) => fn.lambda.metricDuration({ statistic: 'p99' }))),
    );
    if (database.metrics) {
      const metric = this.databaseMetric(database.metrics);
      dashboard.addWidgets(
        graph('Database: connections', [metric('DatabaseConnections', 'Maximum')]),
        graph('Database: CPU, %', [metric('CPUUtilization', 'Average')]),
        graph('Database: commits', [metric('CommitThroughput', 'Average')], [metric('CommitLatency', 'Average')]),
      );
    }
    dashboard.addWidgets(this.latencies(executor));
  }

  /** Asked when somebody looks, so that no metric a field has to be paid for. */
  private latencies(executor: CarillonFunction): cloudwatch.LogQueryWidget {
    return new cloudwatch.LogQueryWidget({
      title: 'Model calls: latency and count by 5 minutes',
      logGroupNames: [executor.logGroup.logGroupName],
      queryLines: [
        'filter message = "model answered"',
        'stats pct(`run.latency_ms`, 50), pct(`run.latency_ms`, 99), max(`run.latency_ms`), count(*) by bin(5m)',
      ],
      width: 24,
      height: 6,
    });
  }
}
