//! Exact sequences, one situation each.
