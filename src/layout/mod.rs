//! Which directory is a unit, and is it complete? Pure functions.
