// The CDK app: reads the settings, makes the one stack, and lets no finding of cdk-nag pass.

import * as path from 'node:path';
import { App, Validations } from 'aws-cdk-lib';
import { AwsSolutionsChecks } from 'cdk-nag';
import { read } from '../lib/settings';
import { CarillonStack } from '../lib/stack';

// Compiled, this file lies in infra/build/bin.
const ZIPS = path.resolve(__dirname, '../../../target/lambda');

// What the library warns of fails the synth here.
const app = new App({ context: { '@aws-cdk/core:validateAgainstDefaultRules': true } });
new CarillonStack(app, String(app.node.tryGetContext('stack') ?? 'Carillon'), read(app.node, ZIPS));
Validations.of(app).addPlugins(new AwsSolutionsChecks(app));
app.synth();
