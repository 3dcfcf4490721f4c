// The management function and the HTTP APIs in front of it.
//
// The first API lets every request through to the function, which checks API keys and OIDC tokens
// itself. The second is made where an issuer is given: the same function, paths and answers, but API
// Gateway checks the token before the function starts. No route of either trusts the other's check.

import { Aws, CfnCondition, Duration, RemovalPolicy, Stack, Validations } from 'aws-cdk-lib';
import * as apigateway from 'aws-cdk-lib/aws-apigatewayv2';
import * as kms from 'aws-cdk-lib/aws-kms';
import * as lambda from 'aws-cdk-lib/aws-lambda';
import * as logs from 'aws-cdk-lib/aws-logs';
import { Construct } from 'constructs';
import { Database } from './database';
import { opensSealed, Queues } from './executor';
import { Base, CarillonFunction } from './function';
import { Outlets } from './outlets';
import { Parameters } from './parameters';
import { Settings } from './settings';

export class Management extends CarillonFunction {
  constructor(scope: Construct, id: string, base: Base, database: Database, queues: Queues, outlets: Outlets, key: kms.Key) {
    const { settings, parameters } = base;
    super(scope, id, 'management', base, {
      memoryMb: 256,
      // API Gateway hangs up after 30 s.
      timeout: Duration.seconds(29),
      reservedConcurrency: settings.managementConcurrency,
      environment: {
        CARILLON_ENV: parameters.environment.valueAsString,
        CARILLON_MODELS: parameters.models.valueAsString,
        CARILLON_PLATFORM_KEY_SHA256: parameters.platformKeySha256.valueAsString,
        CARILLON_OIDC_ISSUER: parameters.oidcIssuer.valueAsString,
        CARILLON_OIDC_AUDIENCE: parameters.oidcAudience.valueAsString,
        ...database.environment('management'),
        ...queues.schedulesEnvironment(),
        CARILLON_KMS_KEY_ID: key.keyArn,
        CARILLON_BUCKET: outlets.bucket.bucketName,
      },
      may: [
        ...database.reads(),
        ...queues.sends(queues.wakeUps),
        ...queues.changesSchedules(),
        ...opensSealed(key, ['kms:Decrypt', 'kms:GenerateDataKey']),
        ...outlets.readsOutputs(),
      ],
    });
    outlets.acknowledgeReader(this.role);
    queues.acknowledgeSchedules(this.role);
    database.admit(this);
  }
}

export class Api extends Construct {
  readonly url: string;
  readonly tokenUrl: string;
  readonly hasTokens: CfnCondition;
  readonly id: string;

  constructor(scope: Construct, id: string, settings: Settings, parameters: Parameters, management: CarillonFunction) {
    super(scope, id);
    const open = new HttpApi(this, 'Open', settings, management);
    Validations.of(open.route).acknowledge({
      id: 'AwsSolutions-APIG4',
      reason: 'The function checks every request itself: an authorizer would shut out API keys',
    });
    this.id = open.api.ref;
    this.url = open.api.attrApiEndpoint;
    this.hasTokens = parameters.given(parameters.oidcIssuer);
    const tokens = new HttpApi(this, 'Tokens', settings, management, {
      issuer: parameters.oidcIssuer.valueAsString,
      audience: parameters.oidcAudience.valueAsString,
      when: this.hasTokens,
    });
    this.tokenUrl = tokens.api.attrApiEndpoint;
  }
}

interface TokenCheck {
  readonly issuer: string;
  readonly audience: string;
  readonly when: CfnCondition;
}

class HttpApi extends Construct {
  readonly api: apigateway.CfnApi;
  readonly route: apigateway.CfnRoute;

  constructor(scope: Construct, id: string, settings: Settings, management: CarillonFunction, tokens?: TokenCheck) {
    super(scope, id);
    this.api = new apigateway.CfnApi(this, 'Api', {
      name: `${Aws.STACK_NAME}-${id.toLowerCase()}`,
      protocolType: 'HTTP',
    });
    const integration = new apigateway.CfnIntegration(this, 'Integration', {
      apiId: this.api.ref,
      integrationType: 'AWS_PROXY',
      integrationUri: management.lambda.functionArn,
      payloadFormatVersion: '2.0',
    });
    const authorizer = tokens && this.authorizer(tokens);
    this.route = new apigateway.CfnRoute(this, 'Route', {
      apiId: this.api.ref,
      routeKey: '$default',
      target: `integrations/${integration.ref}`,
      ...(authorizer && { authorizationType: 'JWT', authorizerId: authorizer.ref }),
    });
    const { log, stage } = this.stage(settings);
    const permission = new lambda.CfnPermission(this, 'Permission', {
      action: 'lambda:InvokeFunction',
      functionName: management.lambda.functionName,
      principal: 'apigateway.amazonaws.com',
      sourceArn: Stack.of(this).formatArn({ service: 'execute-api', resource: this.api.ref, resourceName: '*' }),
    });
    if (tokens) {
      const conditional = [this.api, integration, this.route, log, stage, permission];
      for (const one of conditional) one.cfnOptions.condition = tokens.when;
    }
  }

  private authorizer(tokens: TokenCheck): apigateway.CfnAuthorizer {
    const authorizer = new apigateway.CfnAuthorizer(this, 'Authorizer', {
      apiId: this.api.ref,
      name: 'issuer',
      authorizerType: 'JWT',
      identitySource: ['$request.header.Authorization'],
      jwtConfiguration: { issuer: tokens.issuer, audience: [tokens.audience] },
    });
    authorizer.cfnOptions.condition = tokens.when;
    return authorizer;
  }

  private stage(settings: Settings) {
    const log = new logs.LogGroup(this, 'Log', {
      retention: settings.logDays,
      removalPolicy: RemovalPolicy.DESTROY,
    }).node.defaultChild as logs.CfnLogGroup;
    const stage = new apigateway.CfnStage(this, 'Stage', {
      apiId: this.api.ref,
      stageName: '$default',
      autoDeploy: true,
      defaultRouteSettings: {
        throttlingRateLimit: settings.apiRatePerSecond,
        throttlingBurstLimit: settings.apiBurst,
      },
      accessLogSettings: { destinationArn: log.attrArn, format: ACCESS_LOG_FORMAT },
    });
    return { log, stage };
  }
}

/** No query and no header: a cursor or a key must not stand in a log. */
const ACCESS_LOG_FORMAT = JSON.stringify({
  request: '$context.requestId',
  at: '$context.requestTime',
  from: '$context.identity.sourceIp',
  method: '$context.httpMethod',
  path: '$context.path',
  status: '$context.status',
  bytes: '$context.responseLength',
  latency_ms: '$context.responseLatency',
  error: '$context.integrationErrorMessage',
});
