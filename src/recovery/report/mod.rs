//! The post-mortem. `model` makes it from the events alone; `markdown` shows it to people.

pub mod markdown;
pub mod model;
pub mod profile;
