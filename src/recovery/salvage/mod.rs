//! Trace repair: nothing that reached the disk is lost. `places` finds the halves, `source` opens them (`flip` looks for
//! the one bit that is wrong), `stream` walks through one (`scan` below it, `repair`, `turns` and `signs` beside it, below that `names`, `shapes`, `words` and `order`), `facts`
//! remembers what a cut trace lacks, `weave` makes the output, `write` puts it on the disk, `job` does one trace after the
//! other.

mod anchors;
pub mod damage;
pub mod facts;
pub mod flip;
pub mod habits;
mod inflate;
pub mod job;
mod names;
mod order;
pub mod places;
pub mod repair;
pub mod scan;
mod shapes;
pub mod signs;
pub mod source;
pub mod stream;
pub mod turns;
pub mod weave;
mod words;
pub mod write;

pub use job::{Options, Salvaged, Status, salvage, salvage_folder};
