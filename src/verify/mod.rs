//! Checks that nothing is missing, and says what is.
