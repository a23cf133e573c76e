//! How a struggling upstream is kept from being struck harder: who is left alone, what is sent again, how much at once.
//!
//! Everything here is pure: time and random numbers are arguments, nothing is awaited. [`circuit`] and [`rate`] count
//! over all workers, with one atomic each, since an operator's number is meant for the whole proxy; the rest belongs to
//! one worker. Which endpoint comes next is [`crate::discover::balance`], built on [`latency`] and [`outlier`].

pub mod budget;
pub mod circuit;
pub mod latency;
pub mod outlier;
pub mod rate;
pub mod retry;
