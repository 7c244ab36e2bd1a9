"""What people see of a StateFrame."""
