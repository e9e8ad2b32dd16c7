//! The daemon's own log and figures. Never holds a parameter of a call or a person's data.
