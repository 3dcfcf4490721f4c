// Where the functions' zips lie when the stack is deployed.
//
// `cdk deploy` uploads them to its bootstrap bucket. Whoever applies the template by other means
// (Terraform, an emulator) uploads the files that `Carillon.assets.json` lists, under the same keys, to a
// bucket of their own, and names it in the parameter ArtifactBucket. The template is the same.

import { createHash } from 'node:crypto';
import { existsSync, readFileSync } from 'node:fs';
import * as path from 'node:path';
import {
  CfnCondition,
  CfnParameter,
  DefaultStackSynthesizer,
  FileAssetLocation,
  FileAssetSource,
  Fn,
  Stack,
} from 'aws-cdk-lib';
import * as lambda from 'aws-cdk-lib/aws-lambda';

const BOOTSTRAPPED = 'bootstrap';

export class Synthesizer extends DefaultStackSynthesizer {
  private bucket: string | undefined;

  constructor() {
    // Without the rule the template does not ask whether the account was bootstrapped.
    super({ generateBootstrapVersionRule: false });
  }

  /** Adds the parameter that names the bucket. To be called before the first function is made. */
  declareBucket(stack: Stack): void {
    const named = new CfnParameter(stack, 'ArtifactBucket', {
      default: BOOTSTRAPPED,
      description: `The bucket of the zips; ${BOOTSTRAPPED} for the one that cdk bootstrap made`,
    });
    const given = new CfnCondition(stack, 'ArtifactBucketGiven', {
      expression: Fn.conditionNot(Fn.conditionEquals(named.valueAsString, BOOTSTRAPPED)),
    });
    const bootstrapped = Fn.sub('cdk-hnb659fds-assets-${AWS::AccountId}-${AWS::Region}');
    this.bucket = Fn.conditionIf(given.logicalId, named.valueAsString, bootstrapped).toString();
  }

  override addFileAsset(asset: FileAssetSource): FileAssetLocation {
    const location = super.addFileAsset(asset);
    return this.bucket === undefined ? location : { ...location, bucketName: this.bucket };
  }
}

export interface Zip {
  readonly code: lambda.Code;
  /** Changes exactly when the zip changes. */
  readonly hash: string;
}

/** The zip that `./dev package` left for a function. */
export function zip(folder: string, name: string): Zip {
  const file = path.resolve(folder, name, 'bootstrap.zip');
  if (!existsSync(file)) {
    throw new Error(`there is no ${file}; run ./dev package first, or name a folder with -c zips=`);
  }
  const hash = createHash('sha256').update(readFileSync(file)).digest('hex');
  return { code: lambda.Code.fromAsset(file, { assetHash: hash }), hash };
}
