//! What a claimed run is to do: its prompt's version, its slot, and the texts rendered for it.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::Value;
use shared::{
    db::{DbError, runs::DueSlots},
    destination::Destination,
    ids::RunId,
    prompt::PromptSpec,
    run::RunTrigger,
    slots::Dropped,
    template::{self, Template, TemplateError, Values},
};

/// The longest text that is rendered in the way of other runs, in bytes.
const LIGHT_BYTES_MAX: usize = 4_000;

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
    subjects: Vec<Option<String>>,
}

/// What came of a rendering that had little time.
pub(crate) enum Rendered {
    /// The texts are there, or their fault is known.
    Ready(Job),
    /// It takes longer.
    TooSlow(Job),
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
        spec: PromptSpec,
        scheduled_for: DateTime<Utc>,
        trigger: RunTrigger,
    ) -> Self {
        Self {
            run_id,
            spec,
            scheduled_for,
            trigger,
            texts: Ok(Texts::default()),
            previous_output: None,
            subjects: Vec::new(),
        }
    }

    /// With the output of the prompt's last success.
    pub(crate) fn after(mut self, previous_output: Option<String>) -> Self {
        self.previous_output = previous_output;
        self
    }

    /// With what an earlier try was given.
    pub(crate) fn again(mut self, texts: Texts) -> Self {
        self.texts = Ok(texts);
        self
    }

    /// Renders the texts, if that takes no longer than `time`: others wait for what is locked
    /// meanwhile.
    pub(crate) async fn render_within(self, time: Duration) -> Result<Rendered, DbError> {
        let render = move |job: Self| match job.rendered(Some(time)) {
            Err(Unrendered::Template(TemplateError::TooMuchWork)) => Rendered::TooSlow(job),
            texts => Rendered::Ready(job.with(texts)),
        };
        if self.is_light() {
            return Ok(render(self));
        }
        self.blocking(render).await
    }

    /// Renders the texts. May take two seconds for each, so nothing may be locked.
    pub(crate) async fn render(self) -> Result<Self, DbError> {
        self.blocking(|job| {
            let texts = job.rendered(None);
            job.with(texts)
        })
        .await
    }

    /// A template's work must not hold up other runs.
    async fn blocking<T: Send + 'static>(
        self,
        work: impl FnOnce(Self) -> T + Send + 'static,
    ) -> Result<T, DbError> {
        tokio::task::spawn_blocking(move || work(self))
            .await
            .map_err(|_panic| DbError::Stored {
                what: "prompt",
                detail: "rendering panicked".to_owned(),
            })
    }

    fn with(mut self, texts: Result<Texts, Unrendered>) -> Self {
        self.texts = texts.map_err(|error| error.to_string());
        self
    }

    /// Renders the subjects of its emails, of which each may take two seconds.
    pub(crate) async fn with_subjects(self) -> Result<Self, DbError> {
        let has_subject = |destination: &Destination| match destination {
            Destination::Email(email) => email.subject().is_some(),
            Destination::Webhook(_) | Destination::Storage => false,
        };
        if !self.spec.destinations().iter().any(has_subject) {
            return Ok(self);
        }
        self.blocking(|mut job| {
            let destinations = job.spec.destinations().iter();
            job.subjects = destinations
                .map(|destination| match destination {
                    Destination::Email(email) => job.text(email.subject()?, None).ok(),
                    Destination::Webhook(_) | Destination::Storage => None,
                })
                .collect();
            job
        })
        .await
    }

    /// An email's subject, by the destination's position; `None` where it has none of its own.
    pub(crate) fn subject(&self, position: usize) -> Option<&str> {
        self.subjects.get(position)?.as_deref()
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

    /// Whether rendering costs less than another thread does: short texts that do no more than name
    /// values, as most do.
    fn is_light(&self) -> bool {
        [Some(self.spec.prompt_text()), self.spec.system_text()]
            .into_iter()
            .flatten()
            .all(|text| text.len() <= LIGHT_BYTES_MAX && only_names(text))
    }

    fn rendered(&self, time: Option<Duration>) -> Result<Texts, Unrendered> {
        Ok(Texts {
            input: self.text(self.spec.prompt_text(), time)?,
            system: self
                .spec
                .system_text()
                .map(|text| self.text(text, time))
                .transpose()?,
        })
    }

    fn text(&self, text: &str, time: Option<Duration>) -> Result<String, Unrendered> {
        if template::is_plain(text) {
            return Ok(text.to_owned());
        }
        // The text was checked when it was saved: only another version of the parser can find a
        // fault in it now.
        let template = Template::parse(text).map_err(|faults| {
            let first = faults.into_iter().next();
            Unrendered::Fault(first.map_or_else(String::new, |fault| fault.detail))
        })?;
        let values = Values {
            scheduled_for: self.scheduled_for,
            timezone: self.spec.schedule().timezone(),
            context: self.spec.context(),
            previous_output: self.previous_output.as_deref(),
            run_id: self.run_id,
        };
        let rendered = match time {
            Some(time) => template.render_within(&values, time),
            None => template.render(&values),
        };
        Ok(rendered?)
    }
}

/// Whether a template's tags are all names: no block, operator or filter.
fn only_names(text: &str) -> bool {
    let is_of_name = |letter: char| letter.is_ascii_alphanumeric() || "._".contains(letter);
    let is_name = |(tag, _): (&str, &str)| tag.trim().chars().all(is_of_name);
    !text.contains("{%")
        && !text.contains("{#")
        && text
            .split("{{")
            .skip(1)
            .all(|rest| rest.split_once("}}").is_some_and(is_name))
}

/// Why there is no text.
#[derive(Debug, thiserror::Error)]
enum Unrendered {
    /// The template does not parse.
    #[error("{0}")]
    Fault(String),
    /// It does not render.
    #[error(transparent)]
    Template(#[from] TemplateError),
}

/// What a pause takes away, if this is one.
pub(crate) fn dropped_at_pause(
    pauses: bool,
    due: Option<&DueSlots>,
    now: DateTime<Utc>,
) -> Option<Dropped> {
    due.filter(|_| pauses).and_then(|due| due.dropped(now))
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

#[cfg(test)]
mod tests {
    use super::only_names;

    #[test]
    fn what_does_more_than_name_values_is_not_light() {
        for light in [
            "",
            "Say hello on {{ slot.date }} to {{context.name}}.",
            "a } b { c",
            "{{run.id}}{{ previous.output }}",
        ] {
            assert!(only_names(light), "{light}");
        }
        for heavy in [
            "{% for n in context.list %}{% endfor %}",
            "{# a note #}",
            "{{ context.text | upper }}",
            "{{ context.a in context.list }}",
            "{{ context.a + 1 }}",
            "{{- slot.date -}}",
            "{{ slot.date }} {{ 'x' }}",
            "{{ slot.date",
        ] {
            assert!(!only_names(heavy), "{heavy}");
        }
    }
}
