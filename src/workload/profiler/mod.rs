//! The profiler: `worker.py` records windows inside vLLM; `windows` reads its index, checks and compresses the traces; `analyse`
//! says what a window shows and `summary` what all of them show; `merge` joins the ranks of a
//! window; `folder` does both for any folder; `listing` is the index that people read.

pub mod analyse;
pub mod composition;
pub mod folder;
pub mod listing;
pub mod make_room;
pub mod merge;
pub mod read;
pub mod retention;
pub mod summary;
pub mod windows;
