//! What a claimed run is to do: its prompt's version, its slot, and the texts rendered for it.

use chrono::{DateTime, Utc};
use serde_json::Value;
use shared::{
    db::DbError,
    ids::RunId,
    prompt::PromptSpec,
    run::RunTrigger,
    template::{Template, Values},
};

/// A run's work, before its model is called.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) run_id: RunId,
    pub(crate) spec: PromptSpec,
    pub(crate) scheduled_for: DateTime<Utc>,
    pub(crate) trigger: RunTrigger,
    /// What the model is given, or why a template gave no text.
    pub(crate) texts: Result<Texts, String>,
    previous_output: Option<String>,
}

/// What a model is given.
#[derive(Debug, Clone, Default)]
pub(crate) struct Texts {
    pub(crate) input: String,
    pub(crate) system: Option<String>,
}

impl Job {
    /// A run of this version of its prompt, with nothing rendered.
    pub(crate) fn new(
        run_id: RunId,
        spec: &Value,
        scheduled_for: DateTime<Utc>,
        trigger: RunTrigger,
    ) -> Result<Self, DbError> {
        Ok(Self {
            run_id,
            spec: stored_spec(spec)?,
            scheduled_for,
            trigger,
            texts: Ok(Texts::default()),
            previous_output: None,
        })
    }

    /// Renders the texts, or takes over what an earlier try was given.
    pub(crate) async fn render(
        mut self,
        previous_output: Option<String>,
        earlier: Option<Texts>,
    ) -> Result<Self, DbError> {
        self.previous_output = previous_output;
        if let Some(earlier) = earlier {
            self.texts = Ok(earlier);
            return Ok(self);
        }
        // A template may work for up to two seconds, which must not hold up other runs.
        tokio::task::spawn_blocking(move || {
            self.texts = self.rendered();
            self
        })
        .await
        .map_err(|_panic| DbError::Stored {
            what: "prompt",
            detail: "rendering panicked".to_owned(),
        })
    }

    /// An email's subject; `None` where the destination has none of its own.
    pub(crate) fn subject(&self, text: Option<&str>) -> Option<String> {
        self.text(text?).ok()
    }

    /// The slot; `None` for a run that somebody asked for.
    pub(crate) fn slot(&self) -> Option<DateTime<Utc>> {
        match self.trigger {
            RunTrigger::Schedule | RunTrigger::Backfill => Some(self.scheduled_for),
            RunTrigger::Manual
            | RunTrigger::Retry
            | RunTrigger::Event
            | RunTrigger::Chain
            | RunTrigger::Test => None,
        }
    }

    /// The slot in the prompt's zone.
    pub(crate) fn slot_local(&self) -> Option<String> {
        let zone = self.spec.schedule().timezone();
        self.slot().map(|slot| {
            slot.with_timezone(&zone)
                .format("%Y-%m-%d %H:%M %Z")
                .to_string()
        })
    }

    fn rendered(&self) -> Result<Texts, String> {
        Ok(Texts {
            input: self.text(self.spec.prompt_text())?,
            system: self
                .spec
                .system_text()
                .map(|text| self.text(text))
                .transpose()?,
        })
    }

    fn text(&self, text: &str) -> Result<String, String> {
        // The text was checked when it was saved: only another version of the parser can find a
        // fault in it now.
        let template = Template::parse(text).map_err(|faults| {
            let first = faults.into_iter().next();
            first.map_or_else(String::new, |fault| fault.detail)
        })?;
        template
            .render(&Values {
                scheduled_for: self.scheduled_for,
                timezone: self.spec.schedule().timezone(),
                context: self.spec.context(),
                previous_output: self.previous_output.as_deref(),
                run_id: self.run_id,
            })
            .map_err(|error| error.to_string())
    }
}

pub(crate) fn stored_spec(value: &Value) -> Result<PromptSpec, DbError> {
    PromptSpec::from_stored(value).map_err(|faults| DbError::Stored {
        what: "prompt",
        detail: faults
            .iter()
            .map(|fault| format!("{}: {}", fault.field, fault.code))
            .collect::<Vec<_>>()
            .join(", "),
    })
}
