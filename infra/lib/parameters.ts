// What names an installation: given when the template is deployed, the same in CDK and Terraform.

import { Aws, CfnCondition, CfnParameter, CfnRule, Fn, Stack, Token } from 'aws-cdk-lib';

export class Parameters {
  readonly environment: CfnParameter;
  readonly architecture: CfnParameter;
  readonly mailFrom: CfnParameter;
  readonly platformKeySha256: CfnParameter;
  readonly oidcIssuer: CfnParameter;
  readonly oidcAudience: CfnParameter;
  readonly models: CfnParameter;
  readonly openAiBaseUrl: CfnParameter;
  readonly anthropicBaseUrl: CfnParameter;
  readonly alarmEmail: CfnParameter;
  readonly awsEndpointUrl: CfnParameter;

  constructor(private readonly stack: Stack) {
    this.environment = this.add('Environment', {
      default: 'prod',
      allowedValues: ['dev', 'staging', 'prod'],
      description: 'Part of every API key; prod refuses back ends that only pretend',
    });
    this.architecture = this.add('Architecture', {
      default: 'x86_64',
      allowedValues: ['x86_64', 'arm64'],
      description: 'The processor that the zips were built for',
    });
    this.mailFrom = this.add('MailFrom', {
      // Display names would have to be escaped in a policy's condition.
      allowedPattern: '^[^@<>\\s]+@[^@<>\\s]+$',
      description: 'The address that emails come from; SES must have verified it or its domain',
    });
    this.platformKeySha256 = this.optional('PlatformKeySha256', {
      allowedPattern: '^([0-9a-f]{64})?$',
      description: "SHA-256 of the platform's key in hex; without it /v1/admin stays closed",
    });
    this.oidcIssuer = this.optional('OidcIssuer', {
      allowedPattern: '^(https://.+)?$',
      description: 'The issuer of OIDC tokens; empty for API keys alone',
    });
    this.oidcAudience = this.optional('OidcAudience', { description: 'The audience of OIDC tokens' });
    this.models = this.optional('Models', {
      description: 'Models beyond the shipped price list, as CARILLON_MODELS',
    });
    this.openAiBaseUrl = this.optional('OpenAiBaseUrl', {
      description: 'A server that speaks the OpenAI chat completions; empty for OpenAI itself',
    });
    this.anthropicBaseUrl = this.optional('AnthropicBaseUrl', { description: 'Empty for Anthropic itself' });
    this.alarmEmail = this.optional('AlarmEmail', { description: 'Who is mailed when an alarm rings' });
    this.awsEndpointUrl = this.optional('AwsEndpointUrl', { description: 'An emulator of AWS; empty for AWS' });
    new CfnRule(stack, 'OidcIsWhole', {
      ruleCondition: Fn.conditionNot(Fn.conditionEquals(this.oidcIssuer.valueAsString, '')),
      assertions: [
        {
          assert: Fn.conditionNot(Fn.conditionEquals(this.oidcAudience.valueAsString, '')),
          assertDescription: 'OidcIssuer needs OidcAudience: a token for another service must not open this one',
        },
      ],
    });
  }

  /** Whether a parameter that may be empty is not. */
  given(parameter: CfnParameter): CfnCondition {
    const id = `${parameter.node.id}Given`;
    const made = this.stack.node.tryFindChild(id) as CfnCondition | undefined;
    const expression = Fn.conditionNot(Fn.conditionEquals(parameter.valueAsString, ''));
    return made ?? new CfnCondition(this.stack, id, { expression });
  }

  /** A variable that a function does not get when the parameter is empty. */
  valueOrNothing(parameter: CfnParameter): string {
    const condition = this.given(parameter).logicalId;
    return Token.asString(Fn.conditionIf(condition, parameter.valueAsString, Aws.NO_VALUE));
  }

  private optional(id: string, props: { description: string; allowedPattern?: string }): CfnParameter {
    return this.add(id, { default: '', ...props });
  }

  private add(id: string, props: ConstructorParameters<typeof CfnParameter>[2]): CfnParameter {
    return new CfnParameter(this.stack, id, { type: 'String', ...props });
  }
}
