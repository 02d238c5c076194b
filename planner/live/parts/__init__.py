"""What build puts together: model, adapter, quantised layers, optimizer, batch, loss."""
