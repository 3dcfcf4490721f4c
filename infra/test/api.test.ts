import assert from 'node:assert/strict';
import { test } from 'node:test';
import { synth, target } from './synth';

const { template } = synth({ apiRatePerSecond: 7, apiBurst: 9 });

test('keys and tokens come in through the open API, where the function checks them', () => {
  const [, route] = template.one('AWS::ApiGatewayV2::Route', 'ApiOpen');
  assert.equal(route.Properties.RouteKey, '$default');
  assert.equal(route.Properties.AuthorizationType, undefined);
  assert.equal(route.Condition, undefined);
});

test('with an issuer there is a second API that checks the token first, in front of the same function', () => {
  const [, route] = template.one('AWS::ApiGatewayV2::Route', 'ApiTokens');
  const [authorizerId, authorizer] = template.one('AWS::ApiGatewayV2::Authorizer');
  assert.deepEqual([route.Properties.AuthorizationType, target(route.Properties.AuthorizerId)], ['JWT', authorizerId]);
  assert.deepEqual(authorizer.Properties.JwtConfiguration, { Issuer: { Ref: 'OidcIssuer' }, Audience: [{ Ref: 'OidcAudience' }] });
  const { id } = template.fn('management');
  for (const [, integration] of template.of('AWS::ApiGatewayV2::Integration')) {
    assert.equal(target(integration.Properties.IntegrationUri), id);
  }
});

test('without an issuer nothing of the second API is made', () => {
  const tokens = Object.entries(template.json.Resources as Record<string, any>).filter(([id]) => id.startsWith('ApiTokens'));
  assert.equal(tokens.length, 7);
  for (const [id, resource] of tokens) assert.equal(resource.Condition, 'OidcIssuerGiven', id);
  assert.equal(template.json.Outputs.TokenApiUrl.Condition, 'OidcIssuerGiven');
});

test('an issuer without an audience is refused before anything is made', () => {
  const rule = template.json.Rules.OidcIsWhole;
  assert.deepEqual(rule.RuleCondition, { 'Fn::Not': [{ 'Fn::Equals': [{ Ref: 'OidcIssuer' }, ''] }] });
  assert.deepEqual(rule.Assertions[0].Assert, { 'Fn::Not': [{ 'Fn::Equals': [{ Ref: 'OidcAudience' }, ''] }] });
});

test('both APIs throttle, and write an access log without query or headers', () => {
  const stages = template.of('AWS::ApiGatewayV2::Stage');
  assert.equal(stages.length, 2);
  for (const [id, stage] of stages) {
    assert.deepEqual(stage.Properties.DefaultRouteSettings, { ThrottlingRateLimit: 7, ThrottlingBurstLimit: 9 }, id);
    const format = stage.Properties.AccessLogSettings.Format as string;
    assert.ok(JSON.parse(format).status, id);
    assert.doesNotMatch(format, /query|header|authoriz/i, id);
  }
});

test('API Gateway may invoke management, from this stack\'s own APIs alone', () => {
  const permissions = template.of('AWS::Lambda::Permission');
  assert.equal(permissions.length, 2);
  for (const [id, permission] of permissions) {
    assert.equal(permission.Properties.Principal, 'apigateway.amazonaws.com', id);
    assert.match(JSON.stringify(permission.Properties.SourceArn), /"Ref":"Api(Open|Tokens)Api/, id);
  }
});

test('management answers before API Gateway hangs up', () => {
  assert.ok(template.fn('management').properties.Timeout < 30);
});
