//! The host's durable record of its units, and its replica of the catalog.
