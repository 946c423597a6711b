"""What documents and questions would change in chosen components: gradients, projected and kept."""
