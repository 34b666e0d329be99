//! The post-mortem. `model` and `series` make it from the events alone, `story` puts it into words; `html`, `markdown`
//! and `text` show it to people. `excerpts` takes along what the run folder says beside the journal.

pub mod excerpts;
pub mod html;
pub mod markdown;
pub mod missing;
pub mod model;
pub mod profile;
mod safe;
pub mod story;
pub mod text;
mod view;

pub use crate::view::{series, units};
pub use view::{Excerpt, View};
