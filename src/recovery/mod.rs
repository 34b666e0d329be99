//! After something went wrong: what to save, how to try again, what to repair, what to tell.

pub mod backoff;
pub mod causes;
pub mod evidence;
pub mod mitigation;
pub mod policy;
pub mod report;
pub mod salvage;
pub mod verdict;
