//! The offline provider: for first steps, tests and demonstrations.

use shared::model::Usage;

use super::{ModelAnswer, ModelRequest, Stop, answer};

/// Repeats the input under a line that says that no model was called. The same request always
/// gets the same answer, which used no tokens and costs nothing.
pub(super) fn answer_to(request: &ModelRequest<'_>) -> ModelAnswer {
    let output = format!(
        "[echo] No model was called. This is the prompt that a model would have got:\n\n{}",
        request.input
    );
    let model = request.model.to_string();
    answer(&output, Some(Usage::default()), Stop::End, Some(&model))
}

#[cfg(test)]
mod tests {
    use shared::model::{ModelName, ModelSettings};

    use super::*;

    #[test]
    fn echo_says_that_it_is_one() {
        let model = ModelName::parse("echo/demo").unwrap();
        let answer = answer_to(&ModelRequest {
            model: &model,
            system: Some("system"),
            input: "good morning",
            settings: &ModelSettings::default(),
        });
        assert!(answer.output.starts_with("[echo] No model was called."));
        assert!(answer.output.ends_with("\n\ngood morning"));
        assert_eq!(answer.usage, Some(Usage::default()));
        assert_eq!(
            (answer.stop, answer.model.as_str()),
            (Stop::End, "echo/demo")
        );
    }
}
