//! Tries to break the promises: real processes that are stopped and killed between two effects, over
//! networks that fail and a queue that lies, and a checker that knows the truth from the outside.
//!
//! Nothing here looks at a clock to decide whether a promise held. A cell of the matrix is one scene
//! (a database, two tenants, their prompts), one fault, and the checker's findings.

pub mod cell;
pub mod checker;
mod commands;
pub mod matrix;
pub mod process;
mod random;
pub mod scene;
pub mod table;
