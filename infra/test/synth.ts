// Synthesizes the stack for a test, with placeholders for the zips, and reads the template back.

import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import * as path from 'node:path';
import { App } from 'aws-cdk-lib';
import { FUNCTIONS } from '../lib/function';
import { read } from '../lib/settings';
import { CarillonStack } from '../lib/stack';

export interface Resource {
  readonly Type: string;
  readonly Properties: Record<string, any>;
  readonly DependsOn?: string[];
  readonly Condition?: string;
  readonly DeletionPolicy?: string;
  readonly UpdateReplacePolicy?: string;
}

export interface Assembly {
  readonly folder: string;
  readonly template: Template;
  readonly assets: Record<string, any>;
}

// The synth of `./dev infra` validates the templates; here it would be done for each test again.
process.env['CDK_VALIDATION'] = 'false';

const SCRATCH = mkdtempSync(path.join(tmpdir(), 'carillon-infra-'));
process.on('exit', () => rmSync(SCRATCH, { recursive: true, force: true }));

const made = new Map<string, Assembly>();

/** A stack with these settings; one that was made before is given again. */
export function synth(context: Record<string, unknown> = {}, zips = ZIPS): Assembly {
  const key = JSON.stringify([context, zips]);
  const assembly = made.get(key) ?? make(context, zips);
  made.set(key, assembly);
  return assembly;
}

function make(context: Record<string, unknown>, zips: string): Assembly {
  const folder = scratch('synth');
  const app = new App({ outdir: folder, context: { zips, ...context } });
  new CarillonStack(app, 'Carillon', read(app.node, zips));
  app.synth();
  const json = (name: string) => JSON.parse(readFileSync(path.join(folder, name), 'utf8'));
  return { folder, template: new Template(json('Carillon.template.json')), assets: json('Carillon.assets.json').files };
}

/** A new folder that goes with the process. */
export function scratch(name: string): string {
  return mkdtempSync(path.join(SCRATCH, `${name}-`));
}

/** A folder of zips that differ by function and by `release`. */
export function placeholders(release = '1'): string {
  const folder = scratch('zips');
  for (const name of FUNCTIONS) {
    mkdirSync(path.join(folder, name));
    writeFileSync(path.join(folder, name, 'bootstrap.zip'), `${name} ${release}`);
  }
  return folder;
}

const ZIPS = placeholders();

export class Template {
  constructor(readonly json: Record<string, any>) {}

  of(type: string): [string, Resource][] {
    return Object.entries(this.json.Resources as Record<string, Resource>).filter(([, one]) => one.Type === type);
  }

  /** The one resource of its type whose logical id begins so. */
  one(type: string, prefix = ''): [string, Resource] {
    const found = this.of(type).filter(([id]) => id.startsWith(prefix));
    const [only] = found;
    if (found.length !== 1 || !only) throw new Error(`${found.length} of ${type} begin with "${prefix}"`);
    return only;
  }

  /** A function by its name, with what its role may do. */
  fn(name: string): { id: string; properties: Record<string, any>; resource: Resource; statements: Statement[] } {
    const [id, resource] = this.of('AWS::Lambda::Function').find(
      ([, one]) => one.Properties.Description === `Carillon: ${name}`,
    ) ?? [];
    if (!id || !resource) throw new Error(`there is no function ${name}`);
    const role = resource.Properties.Role['Fn::GetAtt'][0] as string;
    return { id, properties: resource.Properties, resource, statements: this.statements(role) };
  }

  statements(roleId: string): Statement[] {
    const role = this.json.Resources[roleId] as Resource;
    const policies = (role.Properties.Policies ?? []) as { PolicyDocument: { Statement: Statement[] } }[];
    return policies.flatMap((policy) => policy.PolicyDocument.Statement);
  }
}

export interface Statement {
  readonly Effect: 'Allow' | 'Deny';
  readonly Action: string | string[];
  readonly Resource: unknown;
  readonly Principal?: any;
  readonly Condition?: Record<string, Record<string, unknown>>;
}

export function list<T>(one: T | T[]): T[] {
  return Array.isArray(one) ? one : [one];
}

/** What a reference names: the logical id behind Ref or GetAtt. */
export function target(reference: any): string {
  return reference?.Ref ?? reference?.['Fn::GetAtt']?.[0] ?? JSON.stringify(reference);
}
