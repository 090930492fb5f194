"""What the gateway keeps, one class a subject; every statement is bound to a tenant."""
