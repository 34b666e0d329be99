//! Events folded into what people are shown. Whatever shows a run (terminal, `top`, `status`, the live page, the report)
//! is made from these folds, so that no two of them disagree. Pure.

pub mod chart;
pub mod charts;
pub mod clean;
pub mod course;
pub mod meter;
pub mod names;
pub mod now;
pub mod page;
pub mod phrases;
pub mod series;
pub mod snapshot;
pub mod tiles;
pub mod units;
pub mod windows;

#[cfg(test)]
mod now_tests;
