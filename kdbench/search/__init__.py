"""Steps repeated until a measured bound holds; what is measured comes in as a function."""
