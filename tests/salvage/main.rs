//! What salvage promises, against real traces.

mod common;
mod damage;
mod places;
mod prefix;
mod seams;
mod words;
