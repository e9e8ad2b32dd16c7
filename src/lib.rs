#![doc = include_str!("../README.md")]

pub mod error;

pub mod clock;
pub mod config;
pub mod values;

pub mod durable;
pub mod telemetry;

pub mod objects;
pub mod store;

pub mod keyring;

pub mod audit;

pub mod records;

pub mod backup;
pub mod evidence;
pub mod subjects;

pub mod app;

pub mod jobs;

pub mod rpc;

pub mod daemon;

pub mod cli;
