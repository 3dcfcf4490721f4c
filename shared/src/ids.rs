//! Identifiers: UUIDv7, one type per table, so that a run's id cannot stand where a prompt's belongs.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema,
        )]
        #[serde(transparent)]
        #[schema(value_type = Uuid)]
        pub struct $name(Uuid);

        impl $name {
            /// A new identifier; ids sort by the time of their making.
            #[expect(clippy::new_without_default, reason = "each call gives another value")]
            #[must_use]
            pub fn new() -> Self {
                Self(Uuid::now_v7())
            }

            /// Sorts before every identifier, and is none: where a walk over all of them begins.
            pub const BEFORE_ALL: Self = Self(Uuid::nil());

            /// The value as Postgres stores it.
            #[must_use]
            pub fn uuid(self) -> Uuid {
                self.0
            }
        }

        impl From<Uuid> for $name {
            fn from(value: Uuid) -> Self {
                Self(value)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }
    };
}

id!(
    /// A customer of the team that runs Carillon.
    TenantId
);
id!(
    /// A person who belongs to a tenant.
    UserId
);
id!(
    /// An API key's row, not the key.
    ApiKeyId
);
id!(
    /// A scheduled prompt.
    PromptId
);
id!(
    /// The one execution of a slot, or of a manual request.
    RunId
);
id!(
    /// One try of a run's model call.
    AttemptId
);
id!(
    /// One run's output to one destination.
    DeliveryId
);
id!(
    /// A calendar of holidays.
    CalendarId
);
id!(
    /// A request to run the slots of a past range.
    BackfillId
);
id!(
    /// A line of the audit trail.
    AuditEventId
);
