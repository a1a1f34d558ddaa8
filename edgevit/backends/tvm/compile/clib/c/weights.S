/* The weights as an object to link: cc -c @NAME@_weights.S, in the folder that holds model.weights. In C they are
 *   extern const unsigned char model_weights[MODEL_WEIGHTS_BYTES];
 */
  .section .rodata
  .global model_weights
  .type model_weights, %object
  .balign 64
model_weights:
  .incbin "model.weights"
  .size model_weights, . - model_weights
  .section .note.GNU-stack, "", %progbits
