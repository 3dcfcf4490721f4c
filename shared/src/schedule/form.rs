//! The schedule as JSON: one definition for what is stored, what the API returns, and what its
//! OpenAPI document says.
//!
//! Values are made by `parse` alone, so a form that exists has been checked.

use std::fmt;

use chrono::{DateTime, Utc, Weekday};
use chrono_tz::Tz;
use serde::{Deserialize, Serialize, Serializer};
use utoipa::ToSchema;

/// The kinds of schedule: the values of the JSON field `type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleType {
    /// Unix cron.
    Cron,
    /// Every so many minutes, hours or days.
    Interval,
    /// Every day at a time.
    Daily,
    /// On days of the week at a time.
    Weekly,
    /// On days of the month at a time.
    Monthly,
    /// At one instant.
    Once,
    /// Only when somebody asks.
    Manual,
}

impl ScheduleType {
    /// Every kind, in the order in which the documentation lists them.
    pub const ALL: [Self; 7] = [
        Self::Cron,
        Self::Interval,
        Self::Daily,
        Self::Weekly,
        Self::Monthly,
        Self::Once,
        Self::Manual,
    ];

    /// The value of the JSON field `type`, as stored.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cron => "cron",
            Self::Interval => "interval",
            Self::Daily => "daily",
            Self::Weekly => "weekly",
            Self::Monthly => "monthly",
            Self::Once => "once",
            Self::Manual => "manual",
        }
    }

    /// Whether its times are those of a wall clock, so that it has a `dst_gap`.
    #[must_use]
    pub fn is_on_the_wall_clock(self) -> bool {
        match self {
            Self::Cron | Self::Daily | Self::Weekly | Self::Monthly => true,
            Self::Interval | Self::Once | Self::Manual => false,
        }
    }
}

impl fmt::Display for ScheduleType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// When a prompt is due. The field `type` says which form it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(untagged)]
#[schema(
    as = Schedule,
    discriminator(property_name = "type", mapping(
        ("cron" = "#/components/schemas/CronSchedule"),
        ("interval" = "#/components/schemas/IntervalSchedule"),
        ("daily" = "#/components/schemas/DailySchedule"),
        ("weekly" = "#/components/schemas/WeeklySchedule"),
        ("monthly" = "#/components/schemas/MonthlySchedule"),
        ("once" = "#/components/schemas/OnceSchedule"),
        ("manual" = "#/components/schemas/ManualSchedule"),
    ))
)]
pub enum Form {
    /// `{"type": "cron", …}`
    Cron(CronSchedule),
    /// `{"type": "interval", …}`
    Interval(IntervalSchedule),
    /// `{"type": "daily", …}`
    Daily(DailySchedule),
    /// `{"type": "weekly", …}`
    Weekly(WeeklySchedule),
    /// `{"type": "monthly", …}`
    Monthly(MonthlySchedule),
    /// `{"type": "once", …}`
    Once(OnceSchedule),
    /// `{"type": "manual", …}`
    Manual(ManualSchedule),
}

impl Form {
    /// Which kind of schedule this is.
    #[must_use]
    pub fn kind(&self) -> ScheduleType {
        match self {
            Self::Cron(_) => ScheduleType::Cron,
            Self::Interval(_) => ScheduleType::Interval,
            Self::Daily(_) => ScheduleType::Daily,
            Self::Weekly(_) => ScheduleType::Weekly,
            Self::Monthly(_) => ScheduleType::Monthly,
            Self::Once(_) => ScheduleType::Once,
            Self::Manual(_) => ScheduleType::Manual,
        }
    }
}

/// A form's struct: its own fields between its tag and the three that all forms share, with `dst_gap`
/// where its times are those of a wall clock. The tag is a type with one value, because OpenAPI wants
/// the discriminator to be a property of each form.
macro_rules! form {
    (
        $(#[$doc:meta])*
        $name:ident, $tag:ident::$variant:ident, on the wall clock {
            $($(#[$field_doc:meta])* $field:ident: $type:ty,)*
        }
    ) => {
        form!(
            $(#[$doc])*
            $name, $tag::$variant {
                $($(#[$field_doc])* $field: $type,)*
                // A description here would not fit beside the one of the inlined type.
                #[schema(value_type = Option<DstGap>, inline)]
                dst_gap: DstGap,
            }
        );
    };
    (
        $(#[$doc:meta])*
        $name:ident, $tag:ident::$variant:ident {
            $($(#[$field_doc:meta])* $field:ident: $type:ty,)*
        }
    ) => {
        /// The form's own value of `type`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
        #[serde(rename_all = "lowercase")]
        pub(super) enum $tag {
            $variant,
        }

        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            #[serde(rename = "type")]
            #[schema(inline)]
            pub(super) tag: $tag,
            $($(#[$field_doc])* pub(super) $field: $type,)*
            /// The IANA zone whose clock the schedule follows.
            #[schema(value_type = String, required = false, nullable, default = "UTC", max_length = 50, pattern = "^[A-Za-z0-9_+/-]*$", example = "Europe/London")]
            pub(super) timezone: Tz,
            /// No slot before this instant; a slot at it counts. Whole minutes.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub(super) start_at: Option<DateTime<Utc>>,
            /// No slot after this instant; a slot at it counts. Whole minutes.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub(super) end_at: Option<DateTime<Utc>>,
        }
    };
}

form!(
    /// Unix cron: five fields, strict, or one of `@hourly @daily @weekly @monthly @yearly`.
    CronSchedule, CronTag::Cron, on the wall clock {
        /// Minute, hour, day of month, month, day of week (0 and 7 are Sunday).
        #[schema(min_length = 1, max_length = 256, pattern = "^[^\\u0000]*$", example = "0 9 * * 1-5")]
        expression: String,
    }
);

form!(
    /// Every so many minutes, hours or days of elapsed time: exactly one of the three `every_…`
    /// fields. At most 366 days.
    IntervalSchedule, IntervalTag::Interval {
        /// Minutes between two slots.
        #[serde(skip_serializing_if = "Option::is_none")]
        #[schema(minimum = 1, maximum = 527_040)]
        every_minutes: Option<u32>,
        /// Hours between two slots.
        #[serde(skip_serializing_if = "Option::is_none")]
        #[schema(minimum = 1, maximum = 8_784)]
        every_hours: Option<u32>,
        /// Days of 24 hours between two slots. For the same local time each day use `daily`.
        #[serde(skip_serializing_if = "Option::is_none")]
        #[schema(minimum = 1, maximum = 366)]
        every_days: Option<u32>,
        /// The first slot; all others follow at the interval. Without it an interval that divides
        /// the hour starts on the UTC hour, and any other at `start_at` or at the minute of its
        /// making.
        #[serde(skip_serializing_if = "Option::is_none")]
        anchor: Option<DateTime<Utc>>,
    }
);

form!(
    /// Every day at one time.
    DailySchedule, DailyTag::Daily, on the wall clock {
        /// The local time, `HH:MM`, 00:00 to 23:59.
        #[schema(value_type = String, pattern = "^([01][0-9]|2[0-3]):[0-5][0-9]$", example = "08:00")]
        at: TimeOfDay,
    }
);

form!(
    /// On days of the week at one time.
    WeeklySchedule, WeeklyTag::Weekly, on the wall clock {
        /// The days.
        #[schema(min_items = 1, max_items = 7)]
        days: Vec<Day>,
        /// The local time, `HH:MM`, 00:00 to 23:59.
        #[schema(value_type = String, pattern = "^([01][0-9]|2[0-3]):[0-5][0-9]$", example = "10:00")]
        at: TimeOfDay,
    }
);

form!(
    /// On days of the month at one time. A month that lacks a day skips it.
    MonthlySchedule, MonthlyTag::Monthly, on the wall clock {
        /// The days, 1 to 31.
        #[schema(value_type = Vec<DayOfMonth>, min_items = 1, max_items = 31, example = json!([1, 15]))]
        days: Vec<u32>,
        /// The local time, `HH:MM`, 00:00 to 23:59.
        #[schema(value_type = String, pattern = "^([01][0-9]|2[0-3]):[0-5][0-9]$", example = "09:00")]
        at: TimeOfDay,
    }
);

form!(
    /// Once, at one instant.
    OnceSchedule, OnceTag::Once {
        /// An instant with `Z` or an offset, or a local time of the zone without one; whole minutes.
        /// Returned with the zone's offset.
        #[schema(
            example = "2026-07-01T13:00:00",
            pattern = r"^(19[7-9]|2[0-9]{2})[0-9]-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])(T([01][0-9]|2[0-3]):[0-5][0-9](:00(\.0+)?)?|[Tt ]([01][0-9]|2[0-3]):[0-5][0-9]:00(\.0+)?([Zz]|[+-]([01][0-9]|2[0-3]):[0-5][0-9]))$"
        )]
        at: String,
    }
);

form!(
    /// Never by itself: only when somebody asks for a run.
    ManualSchedule, ManualTag::Manual {}
);

/// What becomes of a slot at a local time that the clock jumps over when it goes forward. Left out, it
/// is `shift` for `daily`, `weekly`, `monthly` and for `cron` with fixed hours, and else `skip`. The
/// hours of cron are fixed when neither its minute nor its hour is `*`, a step of it such as `*/15`,
/// or a list of every value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum DstGap {
    /// It moves to the gap's end, the first instant after it. Several that meet there are one slot.
    Shift,
    /// There is no slot.
    Skip,
}

impl DstGap {
    /// Both choices.
    pub const ALL: [Self; 2] = [Self::Shift, Self::Skip];

    /// The text in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Shift => "shift",
            Self::Skip => "skip",
        }
    }
}

/// A day of the month.
#[derive(ToSchema)]
#[schema(minimum = 1, maximum = 31)]
#[expect(dead_code, reason = "describes an item of `days`")]
struct DayOfMonth(u32);

/// A local time of day, to the minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TimeOfDay {
    pub(super) hour: u32,
    pub(super) minute: u32,
}

impl fmt::Display for TimeOfDay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}:{:02}", self.hour, self.minute)
    }
}

impl Serialize for TimeOfDay {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A day of the week.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = Weekday)]
pub enum Day {
    /// Monday
    Mon,
    /// Tuesday
    Tue,
    /// Wednesday
    Wed,
    /// Thursday
    Thu,
    /// Friday
    Fri,
    /// Saturday
    Sat,
    /// Sunday
    Sun,
}

impl Day {
    /// Every day with its name and its number in cron, Monday first.
    pub(crate) const ALL: [(Self, &'static str, u32); 7] = [
        (Self::Mon, "mon", 1),
        (Self::Tue, "tue", 2),
        (Self::Wed, "wed", 3),
        (Self::Thu, "thu", 4),
        (Self::Fri, "fri", 5),
        (Self::Sat, "sat", 6),
        (Self::Sun, "sun", 0),
    ];

    /// The day of a date.
    pub(crate) fn of(weekday: Weekday) -> Self {
        match weekday {
            Weekday::Mon => Self::Mon,
            Weekday::Tue => Self::Tue,
            Weekday::Wed => Self::Wed,
            Weekday::Thu => Self::Thu,
            Weekday::Fri => Self::Fri,
            Weekday::Sat => Self::Sat,
            Weekday::Sun => Self::Sun,
        }
    }
}
