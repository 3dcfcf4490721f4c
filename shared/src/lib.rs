//! What Carillon's functions share.
//!
//! The pure modules (`fault`, `ids`, `schedule`, `prompt`, `template`, `run`, `price`, `outbound`)
//! import neither `db` nor a network client. All SQL lives in `db`; nothing outside it can run a
//! statement.

pub mod db;
pub mod fault;
pub mod ids;
<<<<<<< HEAD
pub mod message;
pub mod queue;
pub mod run;
=======
pub mod model;
pub mod price;
>>>>>>> models
pub mod secret;
pub mod slots;
