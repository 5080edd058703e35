"""`otlabel.report`: one HTML page about labels. Named otherwise than that function, which a module would hide."""
