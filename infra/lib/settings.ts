// What shapes the stack, read once from the context (`cdk -c name=value`) before anything is built.
//
// Whatever names an installation (its environment, sender, issuer) is a parameter of the template
// instead, so that one template serves every account. What stands here decides which resources there
// are and how many connections they may open, and is checked before it is used.

import { Node } from 'constructs';

export const DATABASES = ['postgres', 'aurora', 'external'] as const;
export type Database = (typeof DATABASES)[number];

/** Instances of RDS, and how many connections we let each of them take. */
export const SIZES = {
  micro: { instance: 't4g.micro', connectionsMax: 80 },
  small: { instance: 't4g.small', connectionsMax: 160 },
  medium: { instance: 't4g.medium', connectionsMax: 320 },
  large: { instance: 'm7g.large', connectionsMax: 640 },
} as const;
export type Size = keyof typeof SIZES;

/** What Aurora may take at its smallest, 0.5 capacity units of 2 GiB each. */
const AURORA_CONNECTIONS_MAX = 160;

/** Connections left to a person with psql, to RDS itself, and to monitoring. */
export const CONNECTIONS_RESERVED = 10;

/**
 * The pools of each function, as its environment is told. A function opens one connection a pool at
 * its start and no more than this many ever.
 */
export const POOLS = {
  management: { app: 2, system: 1 },
  executor: { app: 4, system: 1 },
  sweeper: { app: 2, system: 3 },
} as const;

/** The migration works through one connection, and one of it runs at a time. */
export const MIGRATION_CONNECTIONS = 1;

export interface Settings {
  /** `external` brings no network and no database: the functions reach one that is there already. */
  readonly database: Database;
  readonly size: Size;
  /** A standby in a second zone. */
  readonly multiAz: boolean;
  readonly natGateways: number;
  /** The most that the database lets in; for `external`, what its owner says. */
  readonly connectionsMax: number;
  /** Executors at work at once. */
  readonly executorConcurrency: number;
  /** Wake-ups that one executor is handed at once. */
  readonly executorBatch: number;
  /** Wake-ups that one executor works on at once. */
  readonly executorSlots: number;
  readonly executorMemoryMb: number;
  /** Requests answered at once. */
  readonly managementConcurrency: number;
  readonly apiRatePerSecond: number;
  readonly apiBurst: number;
  readonly logDays: number;
  /** Lets the stack be deleted with all its data. */
  readonly disposable: boolean;
  /** The folder of `<function>/bootstrap.zip`. */
  readonly zips: string;
}

/** Reads the settings, and refuses them all at once with a line for each fault. */
export function read(node: Node, zipsByDefault: string): Settings {
  const faults: string[] = [];
  const context = new Context(node, faults);
  const database = context.oneOf('database', DATABASES, 'postgres');
  const size = context.oneOf('databaseSize', Object.keys(SIZES) as Size[], 'small');
  const given = context.number('databaseConnections', 10, 5000, 100);
  const settings: Settings = {
    database,
    size,
    multiAz: context.flag('multiAz', true),
    natGateways: context.number('natGateways', 1, 2, 1),
    connectionsMax: limitOf(database, size, given),
    // Two is the least that an event source mapping takes.
    executorConcurrency: context.number('executorConcurrency', 2, 1000, 10),
    executorBatch: context.number('executorBatch', 1, 1000, 100),
    executorSlots: context.number('executorSlots', 1, 100, 10),
    executorMemoryMb: context.number('executorMemoryMb', 128, 3008, 128),
    managementConcurrency: context.number('managementConcurrency', 1, 1000, 10),
    apiRatePerSecond: context.number('apiRatePerSecond', 1, 10_000, 50),
    apiBurst: context.number('apiBurst', 1, 5_000, 100),
    logDays: context.number('logDays', 1, 3653, 30),
    disposable: context.flag('disposable', false),
    zips: context.text('zips', zipsByDefault),
  };
  if (database !== 'external' && context.isGiven('databaseConnections')) {
    faults.push('databaseConnections is for database=external; the others have their own limit');
  }
  const needed = connectionsAtMost(settings);
  if (needed + CONNECTIONS_RESERVED > settings.connectionsMax) {
    faults.push(
      `the functions may open ${needed} connections and ${CONNECTIONS_RESERVED} are kept free, but the ` +
        `database takes ${settings.connectionsMax}; lower executorConcurrency (${settings.executorConcurrency}) or ` +
        `managementConcurrency (${settings.managementConcurrency}), or raise databaseSize`,
    );
  }
  if (faults.length > 0) throw new Error(`settings: ${faults.join('; ')}`);
  return settings;
}

/** How many connections all functions hold together when each runs as often as it may. */
export function connectionsAtMost(settings: Settings): number {
  const per = (pool: { app: number; system: number }) => pool.app + pool.system;
  return (
    settings.executorConcurrency * per(POOLS.executor) +
    settings.managementConcurrency * per(POOLS.management) +
    per(POOLS.sweeper) +
    MIGRATION_CONNECTIONS
  );
}

function limitOf(database: Database, size: Size, given: number): number {
  switch (database) {
    case 'postgres':
      return SIZES[size].connectionsMax;
    case 'aurora':
      return AURORA_CONNECTIONS_MAX;
    case 'external':
      return given;
  }
}

class Context {
  constructor(
    private readonly node: Node,
    private readonly faults: string[],
  ) {}

  isGiven(name: string): boolean {
    return this.node.tryGetContext(name) !== undefined;
  }

  text(name: string, otherwise: string): string {
    return this.isGiven(name) ? String(this.node.tryGetContext(name)) : otherwise;
  }

  oneOf<T extends string>(name: string, allowed: readonly T[], otherwise: T): T {
    const text = this.text(name, otherwise);
    const found = allowed.find((one) => one === text);
    if (found === undefined) this.faults.push(`${name} must be one of ${allowed.join(', ')}`);
    return found ?? otherwise;
  }

  flag(name: string, otherwise: boolean): boolean {
    return this.oneOf(name, ['true', 'false'], otherwise ? 'true' : 'false') === 'true';
  }

  number(name: string, least: number, most: number, otherwise: number): number {
    const value = Number(this.text(name, String(otherwise)));
    if (Number.isInteger(value) && value >= least && value <= most) return value;
    this.faults.push(`${name} must be a whole number from ${least} to ${most}`);
    return otherwise;
  }
}
