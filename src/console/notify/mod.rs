//! Who is told of a run: `[[notify]]` and `--notify`. `message` makes messages from events, `forms` puts them into the form
//! that somebody takes, `outbox` remembers on disk what was not delivered yet, `post` delivers it on a thread of its own.

mod forms;
mod http;
pub mod message;
pub mod outbox;
mod pause;
pub mod post;
mod program;
mod send;

pub use message::{Composer, Message};
pub use outbox::Outbox;
pub use post::{Poster, Tally};
pub use send::{Recipient, Trouble};
