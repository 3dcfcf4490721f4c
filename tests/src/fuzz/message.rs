//! A message of the queue.

use shared::message::{Fired, Message, WakeUp, decode, encode, encode_entry};

use super::Verdict;

/// Where the scheduler writes the slot into what an entry sends.
const PLACEHOLDER: &str = "<aws.scheduler.scheduled-time>";
const ERROR_BYTES_MAX: usize = 200;

pub(super) fn check(data: &[u8]) -> Verdict {
    let Ok(text) = str::from_utf8(data) else {
        return Verdict::Refused;
    };
    let message = match decode(text) {
        Ok(message) => message,
        Err(error) => {
            let told = error.to_string();
            assert!(told.len() <= ERROR_BYTES_MAX, "{told}");
            return Verdict::Refused;
        }
    };
    assert_eq!(decode(&again(&message)), Ok(message));
    let plain = Message {
        fired: None,
        ..message
    };
    assert_eq!(decode(&encode(message.wake_up)), Ok(plain));
    assert_eq!(plain.wake_up.tenant_id(), message.wake_up.tenant_id());
    Verdict::Accepted
}

/// The same message as its senders write it: an entry's text is filled in by the scheduler.
fn again(message: &Message) -> String {
    let Some(Fired {
        generation,
        scheduled_for,
    }) = message.fired
    else {
        return encode(message.wake_up);
    };
    let tenant_id = message.wake_up.tenant_id();
    let text = match message.wake_up {
        WakeUp::Prompt { prompt_id, .. } => encode_entry(tenant_id, prompt_id, generation),
        // Nobody of ours sends these with a generation; what they say is read all the same.
        WakeUp::Run { .. } | WakeUp::Delivery { .. } => {
            let plain = encode(message.wake_up);
            let open = plain.strip_suffix('}').unwrap();
            format!(r#"{open},"generation":{generation},"scheduled_for":"{PLACEHOLDER}"}}"#)
        }
    };
    match scheduled_for {
        Some(slot) => text.replace(PLACEHOLDER, &slot.to_rfc3339()),
        None => text,
    }
}
