// One Lambda function of Carillon: its zip, its log group, and a role that is written out by hand.
//
// No managed policy and no grant helper: a role may do what stands in its list, and the tests read the
// list back from the template.

import { Aws, Duration, RemovalPolicy, Validations } from 'aws-cdk-lib';
import * as ec2 from 'aws-cdk-lib/aws-ec2';
import * as iam from 'aws-cdk-lib/aws-iam';
import * as lambda from 'aws-cdk-lib/aws-lambda';
import * as logs from 'aws-cdk-lib/aws-logs';
import { Construct } from 'constructs';
import { zip } from './artifacts';
import { Parameters } from './parameters';
import { Settings } from './settings';

export const FUNCTIONS = ['management', 'executor', 'sweeper', 'migrate'] as const;
export type FunctionName = (typeof FUNCTIONS)[number];

/** What every function needs beside its own concerns. */
export interface Base {
  readonly settings: Settings;
  readonly parameters: Parameters;
  readonly network: Network | undefined;
}

export interface Network {
  readonly vpc: ec2.IVpc;
  readonly subnets: ec2.SubnetSelection;
}

export interface FunctionProps {
  readonly memoryMb: number;
  readonly timeout: Duration;
  readonly reservedConcurrency?: number;
  readonly environment: Record<string, string>;
  readonly may: iam.PolicyStatement[];
  /** Ports beside 443 that it may reach anywhere. */
  readonly ports?: number[];
}

export class CarillonFunction extends Construct {
  readonly lambda: lambda.Function;
  readonly role: iam.Role;
  readonly logGroup: logs.LogGroup;
  readonly zipHash: string;
  readonly securityGroup: ec2.SecurityGroup | undefined;

  constructor(scope: Construct, id: string, name: FunctionName, base: Base, props: FunctionProps) {
    super(scope, id);
    const { settings, parameters, network } = base;
    const zipped = zip(settings.zips, name);
    this.zipHash = zipped.hash;
    this.logGroup = new logs.LogGroup(this, 'Log', {
      logGroupName: `/${Aws.STACK_NAME}/${name}`,
      retention: settings.logDays,
      removalPolicy: RemovalPolicy.DESTROY,
    });
    this.role = this.makeRole(props.may, network !== undefined);
    this.securityGroup = network && this.makeSecurityGroup(network.vpc, [443, ...(props.ports ?? [])]);
    this.lambda = new lambda.Function(this, 'Function', {
      description: `Carillon: ${name}`,
      runtime: lambda.Runtime.PROVIDED_AL2023,
      architecture: lambda.Architecture.custom(parameters.architecture.valueAsString),
      handler: 'bootstrap',
      code: zipped.code,
      role: this.role,
      memorySize: props.memoryMb,
      timeout: props.timeout,
      environment: {
        ...props.environment,
        AWS_ENDPOINT_URL: parameters.valueOrNothing(parameters.awsEndpointUrl),
      },
      logGroup: this.logGroup,
      ...(props.reservedConcurrency && { reservedConcurrentExecutions: props.reservedConcurrency }),
      ...(network && { vpc: network.vpc, vpcSubnets: network.subnets }),
      ...(this.securityGroup && { securityGroups: [this.securityGroup] }),
    });
  }

  private makeRole(may: iam.PolicyStatement[], inNetwork: boolean): iam.Role {
    const writeLog = new iam.PolicyStatement({
      actions: ['logs:CreateLogStream', 'logs:PutLogEvents'],
      resources: [this.logGroup.logGroupArn],
    });
    const statements = [writeLog, ...(inNetwork ? joinNetwork() : []), ...may];
    const role = new iam.Role(this, 'Role', {
      assumedBy: new iam.ServicePrincipal('lambda.amazonaws.com'),
      inlinePolicies: { may: new iam.PolicyDocument({ statements }) },
    });
    if (inNetwork) {
      Validations.of(role).acknowledge({
        id: 'AwsSolutions-IAM5[Resource::*]',
        reason: "Lambda's own calls for network interfaces take no resource; code is denied them",
      });
    }
    return role;
  }

  private makeSecurityGroup(vpc: ec2.IVpc, ports: number[]): ec2.SecurityGroup {
    const group = new ec2.SecurityGroup(this, 'SecurityGroup', { vpc, allowAllOutbound: false });
    for (const port of ports) group.addEgressRule(ec2.Peer.anyIpv4(), ec2.Port.tcp(port));
    return group;
  }
}

/** What Lambda needs to place a function in a network, and what the function's own code is denied. */
function joinNetwork(): iam.PolicyStatement[] {
  const actions = [
    'ec2:AssignPrivateIpAddresses',
    'ec2:CreateNetworkInterface',
    'ec2:DeleteNetworkInterface',
    'ec2:DescribeNetworkInterfaces',
    'ec2:DescribeSubnets',
    'ec2:UnassignPrivateIpAddresses',
  ];
  return [
    new iam.PolicyStatement({ actions, resources: ['*'] }),
    new iam.PolicyStatement({
      effect: iam.Effect.DENY,
      actions,
      resources: ['*'],
      // The key is there only when a function's code makes the call.
      conditions: { Null: { 'lambda:SourceFunctionArn': 'false' } },
    }),
  ];
}
