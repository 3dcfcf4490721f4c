//! The stack's bounds on connections, as the functions themselves read them.

use std::path::Path;

use serde_json::Value;
use shared::{db::Settings, env::Reader};

use crate::stack::{placeholders, synthesize};

const ARN: &str = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:role-a1b2c3";

/// What a function would open that does not read the template's variables.
const UNBOUNDED: usize = 99;

fn of<'a>(template: &'a Value, kind: &str) -> impl Iterator<Item = (&'a str, &'a Value)> {
    let all = template["Resources"].as_object().unwrap().iter();
    let ours = all.filter(move |(_, resource)| resource["Type"] == kind);
    ours.map(|(id, resource)| (&**id, &resource["Properties"]))
}

/// A text of the template; what it has to be told first is some secret's ARN.
fn variable(function: &Value, name: &str) -> Option<String> {
    let value = function["Environment"]["Variables"].get(name)?;
    let text = value.as_str().unwrap_or(ARN);
    // A path in the zip is one in this repository.
    let Some(packed) = text.strip_prefix("/var/task/") else {
        return Some(text.to_owned());
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    Some(root.join(packed).to_str().unwrap().to_owned())
}

/// How many connections one process of a function may open.
fn connections(function: &Value) -> u64 {
    let look_up = |name: &str| variable(function, name);
    let mut reader = Reader::new(&look_up);
    let settings = Settings::read(&mut reader, UNBOUNDED, UNBOUNDED);
    let settings = reader.finish(settings).unwrap();
    u64::try_from(settings.app_connections_max + settings.system_connections_max).unwrap()
}

#[test]
fn what_the_functions_may_open_fits_into_the_database() {
    let folder = tempfile::tempdir().unwrap();
    placeholders(&folder);
    let template = synthesize(&folder, "Carillon", "postgres").join("Carillon.template.json");
    let template: Value = serde_json::from_slice(&std::fs::read(template).unwrap()).unwrap();
    let mut most = 0;
    for name in ["management", "executor", "sweeper", "migrate"] {
        let mut all = of(&template, "AWS::Lambda::Function");
        let named = |(_, one): &(&str, &Value)| one["Description"] == format!("Carillon: {name}");
        let (id, function) = all.find(named).unwrap();
        let mut mappings = of(&template, "AWS::Lambda::EventSourceMapping");
        let mapping = mappings.find(|(_, one)| one["FunctionName"]["Ref"] == id);
        let at_once = match mapping {
            Some((_, mapping)) => &mapping["ScalingConfig"]["MaximumConcurrency"],
            None => &function["ReservedConcurrentExecutions"],
        };
        // The migration works through one.
        let each = if name == "migrate" {
            1
        } else {
            connections(function)
        };
        let at_once = at_once
            .as_u64()
            .unwrap_or_else(|| panic!("nothing bounds {name}"));
        assert!(
            each < 10,
            "{name} opens {each}: the variables' names differ"
        );
        most += at_once * each;
    }
    let (_, parameters) = of(&template, "AWS::RDS::DBParameterGroup").next().unwrap();
    let limit = parameters["Parameters"]["max_connections"]
        .as_str()
        .unwrap();
    assert!(most > 50, "only {most} were counted");
    assert!(most <= limit.parse().unwrap(), "{most} of {limit}");
}
