//! The dataplane room.
